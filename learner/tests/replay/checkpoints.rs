//! A checkpoint at every crash point is the old one or the new one, and only whole ones are loaded.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use folgore_learner::checkpoint::{CheckpointError, CheckpointMeta, CheckpointStore, Disk, RealDisk};

/// What happens from the failing operation on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// That operation fails, the process lives and cleans up.
    Once,
    /// The process dies: nothing more happens.
    Kill,
    /// The machine dies: what was not synced is cut, what was renamed and not synced is undone.
    PowerCut,
}

#[derive(Default)]
struct Faults {
    operations: u64,
    fail_at: Option<(u64, Fault)>,
    dead: bool,
    unsynced: BTreeSet<PathBuf>,
    renamed: Vec<(PathBuf, PathBuf)>,
}

#[derive(Clone, Default)]
struct FailingDisk(Arc<Mutex<Faults>>);

impl FailingDisk {
    fn step(&self, work: impl FnOnce(&mut Faults) -> io::Result<()>, torn: impl FnOnce()) -> io::Result<()> {
        let mut faults = self.0.lock().unwrap();
        faults.operations += 1;
        if faults.dead {
            return Err(io::ErrorKind::Other.into());
        }
        match faults.fail_at {
            Some((at, fault)) if at == faults.operations => {
                torn();
                faults.dead = fault != Fault::Once;
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => work(&mut faults),
        }
    }

    /// What a power cut leaves.
    fn cut(&self) {
        let faults = self.0.lock().unwrap();
        for (from, to) in faults.renamed.iter().rev() {
            fs::rename(to, from).unwrap();
        }
        for path in faults.unsynced.iter().filter(|path| path.is_file()) {
            fs::write(path, b"").unwrap();
        }
    }
}

impl Disk for FailingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.step(|_| RealDisk.create_dir(path), || ())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let whole = |faults: &mut Faults| {
            faults.unsynced.insert(path.to_owned());
            RealDisk.write(path, bytes)
        };
        self.step(whole, || drop(fs::write(path, &bytes[..bytes.len() / 2])))
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let sync = |faults: &mut Faults| {
            faults.unsynced.remove(path);
            faults.renamed.retain(|(_, to)| to.parent() != Some(path));
            RealDisk.sync(path)
        };
        self.step(sync, || ())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let rename = |faults: &mut Faults| {
            faults.renamed.push((from.to_owned(), to.to_owned()));
            RealDisk.rename(from, to)
        };
        self.step(rename, || ())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.step(|_| RealDisk.remove_dir(path), || ())
    }
}

fn meta(step: u64) -> CheckpointMeta {
    CheckpointMeta { step, epoch: 1, ..CheckpointMeta::default() }
}

/// Saves step `step` with contents that name it and `version`.
fn save(store: &mut CheckpointStore, step: u64, version: u32) -> Result<PathBuf, CheckpointError> {
    let text = format!("{step} {version}");
    let files: [(&str, &[u8]); 3] = [
        ("adapter_model.safetensors", text.as_bytes()),
        ("state/trainer.json", text.as_bytes()),
        ("state/optimizer.safetensors", text.as_bytes()),
    ];
    store.save_with(&meta(step), &files, |dir| fs::write(dir.join("adapter_config.json"), &text))
}

/// Step and contents of the newest checkpoint, all of whose files agree.
fn newest(dir: &Path) -> Option<(u64, String)> {
    let mut store = CheckpointStore::open(dir, 2).unwrap();
    let (found, _) = store.newest().unwrap();
    let found = found?;
    let names: Vec<&String> = found.manifest.files.keys().collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let texts: BTreeSet<Vec<u8>> = names.iter().map(|name| found.read(name).unwrap()).collect();
    assert_eq!(texts.len(), 1, "a mix of two saves");
    Some((found.manifest.step, String::from_utf8(texts.into_iter().next().unwrap()).unwrap()))
}

/// Runs `work` with a fault at each operation in turn, on a folder prepared with checkpoints 1 and 2; what is found
/// afterwards must be in `allowed`, and each of them must be seen.
fn at_every_operation(work: impl Fn(&mut CheckpointStore) -> Result<(), CheckpointError>, allowed: &[(u64, &str)]) {
    let mut seen = BTreeSet::new();
    for fault in [Fault::Once, Fault::Kill, Fault::PowerCut] {
        for n in 1.. {
            let dir = tempfile::tempdir().unwrap();
            let mut before = CheckpointStore::open(dir.path(), 2).unwrap();
            save(&mut before, 1, 0).unwrap();
            save(&mut before, 2, 0).unwrap();
            let disk = FailingDisk::default();
            disk.0.lock().unwrap().fail_at = Some((n, fault));
            let mut store = CheckpointStore::on(Box::new(disk.clone()), dir.path(), 2).unwrap();
            let result = work(&mut store);
            if fault == Fault::PowerCut {
                disk.cut();
            }
            let found = newest(dir.path()).expect("no checkpoint is left");
            assert!(allowed.iter().any(|(s, t)| (*s, *t) == (found.0, &found.1)), "{fault:?} at {n}: found {found:?}");
            if result.is_ok() {
                let (last, text) = allowed.last().unwrap();
                assert_eq!((found.0, found.1.as_str()), (*last, *text), "{fault:?} at {n}: told as done");
            }
            let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert!(left.iter().all(|name| !name.to_string_lossy().contains(".tmp-")), "{left:?}");
            seen.insert(found);
            if disk.0.lock().unwrap().operations < n {
                break;
            }
        }
    }
    for (step, text) in allowed {
        assert!(seen.contains(&(*step, (*text).to_owned())), "no crash left {step} {text:?}: {seen:?}");
    }
}

#[test]
fn a_fault_at_every_operation_of_a_save_leaves_the_old_or_the_new_checkpoint() {
    let work = |store: &mut CheckpointStore| save(store, 3, 0).map(drop);
    at_every_operation(work, &[(2, "2 0"), (3, "3 0")]);
}

#[test]
fn saving_a_step_again_after_a_resume_is_as_safe() {
    // Between the two renames the step has no checkpoint: the one before it is found then.
    let work = |store: &mut CheckpointStore| save(store, 2, 1).map(drop);
    at_every_operation(work, &[(1, "1 0"), (2, "2 0"), (2, "2 1")]);
}

#[test]
fn a_fault_while_pruning_never_takes_the_newest() {
    let work = |store: &mut CheckpointStore| {
        save(store, 3, 0)?;
        store.prune().map(drop)
    };
    at_every_operation(work, &[(2, "2 0"), (3, "3 0")]);
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FailingDisk::default();
    let mut store = CheckpointStore::on(Box::new(disk.clone()), dir.path(), 2).unwrap();
    disk.0.lock().unwrap().fail_at = Some((2, Fault::Once));
    let error = save(&mut store, 1, 0).unwrap_err();
    assert!(error.is_disk_full() && error.to_string().contains("adapter_model.safetensors"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    save(&mut store, 1, 0).unwrap();
}

#[test]
fn damaged_checkpoints_are_passed_over_and_left_alone() {
    type Damage = fn(&Path);
    let damages: [(Damage, &str); 6] = [
        (|p| fs::write(p.join("state/trainer.json"), "3 1").unwrap(), "state/trainer.json: expected digest"),
        (|p| fs::write(p.join("state/trainer.json"), "3").unwrap(), "expected 3 bytes, got 1"),
        (|p| fs::remove_file(p.join("adapter_config.json")).unwrap(), "adapter_config.json"),
        (|p| fs::remove_file(p.join("manifest.json")).unwrap(), "manifest.json"),
        (|p| fs::write(p.join("manifest.json"), "{\"schema\": 1,").unwrap(), "manifest.json"),
        (|p| edit(p, "\"schema\": 1", "\"schema\": 9"), "expected schema 1, got 9"),
    ];
    for (damage, reason) in damages {
        let dir = tempfile::tempdir().unwrap();
        let mut store = CheckpointStore::open(dir.path(), 2).unwrap();
        (1..=3).for_each(|step| drop(save(&mut store, step, 0).unwrap()));
        damage(&dir.path().join("checkpoint-3"));
        let mut store = CheckpointStore::open(dir.path(), 1).unwrap();
        let (found, skipped) = store.newest().unwrap();
        assert_eq!(found.unwrap().manifest.step, 2);
        assert_eq!(skipped.len(), 1);
        assert!(skipped[0].reason.contains(reason), "{:?} does not say {reason:?}", skipped[0].reason);
        assert_eq!(store.prune().unwrap(), [2], "the damaged one does not count");
        assert!(dir.path().join("checkpoint-3").exists() && !dir.path().join("checkpoint-1").exists());
        save(&mut store, 3, 7).unwrap();
        assert_eq!(newest(dir.path()), Some((3, "3 7".to_owned())));
        let aside = fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("checkpoint-3.bad-"));
        assert_eq!(aside.count(), 1, "the damaged one was deleted");
    }
}

fn edit(checkpoint: &Path, from: &str, to: &str) {
    let path = checkpoint.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_manifest_cannot_reach_outside_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = CheckpointStore::open(dir.path(), 2).unwrap();
    save(&mut store, 1, 0).unwrap();
    fs::write(dir.path().join("secret"), "1 0").unwrap();
    edit(&dir.path().join("checkpoint-1"), "state/trainer.json", "../secret");
    let (found, skipped) = store.newest().unwrap();
    assert!(found.is_none() && skipped[0].reason.contains("inside the checkpoint"), "{skipped:?}");
    for bad in ["../x", "manifest.json", "/x"] {
        assert!(matches!(store.save(&meta(2), &[(bad, b"")]), Err(CheckpointError::File { .. })), "{bad}");
    }
}

#[test]
fn the_newest_few_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = CheckpointStore::open(dir.path(), 2).unwrap();
    for step in [1, 9, 10, 11] {
        save(&mut store, step, 0).unwrap();
        store.prune().unwrap();
    }
    fs::create_dir(dir.path().join("checkpoint-007")).unwrap();
    assert_eq!(store.steps().unwrap(), [10, 11]);
    assert_eq!(newest(dir.path()).unwrap().0, 11);
}
