//! The record on a disk that fails, is cut off, is damaged, or belongs to somebody else.

use std::{fs, io, path::Path};

use folgore_learner::{
    checkpoint::RunLock,
    record::{Record, RecordError, Snapshot},
    replay::{ReplaySetup, Store},
};
use folgore_protocol::Batch;

use crate::common::*;

/// Everything that can be read of a record.
fn contents(record: &Record) -> (Snapshot, Vec<Option<Batch>>) {
    let batches = (1..=3).map(|step| record.batch(step).unwrap()).collect();
    (record.load().unwrap(), batches)
}

/// A change with all kinds of rows: the last trajectory of a step, its batch, and the groups of the next step.
fn prepared(disk: &MemoryDisk) -> (Store, folgore_protocol::Trajectory) {
    let mut store = open(settings(), disk);
    run_calmly(&mut store, 1..=1, CALM);
    let jobs = change(&mut store, |l| l.open_seats(0, 100, false));
    for job in &jobs[1..] {
        change(&mut store, |l| l.ingest(play(job, policy_for(job), CALM)));
    }
    let last = play(&jobs[0], policy_for(&jobs[0]), CALM);
    (store, last)
}

#[test]
fn an_error_at_every_write_leaves_the_old_state_or_the_new_one() {
    let before = MemoryDisk::default();
    let (store, last) = prepared(&before);
    drop(store);
    let old = contents(&Record::on_backend(before.crash(false)).unwrap());

    let after = before.crash(false);
    let mut store = open(settings(), &after);
    let began = after.operations();
    change(&mut store, |l| l.ingest(last.clone()));
    let operations = after.operations() - began;
    drop(store);
    let new = contents(&Record::on_backend(after.crash(false)).unwrap());
    assert!(operations > 3 && old != new);

    let (mut olds, mut news) = (0, 0);
    for n in 1..=operations + 1 {
        for written in [false, true] {
            let disk = before.crash(false);
            let mut store = open(settings(), &disk);
            disk.fail(Some(n), io::ErrorKind::StorageFull);
            let result = store.change(|l| l.ingest(last.clone()));
            let acked = match result {
                Ok(_) => true,
                Err(error) => {
                    assert!(is_disk_full(&error), "operation {n}: {error}");
                    false
                }
            };
            drop(store);
            let left = contents(&Record::on_backend(disk.crash(written)).unwrap());
            assert!(left == old || left == new, "operation {n}: neither the old state nor the new one");
            assert!(!acked || left == new, "operation {n}: acked and lost");
            if left == new { news += 1 } else { olds += 1 }
        }
    }
    assert!(olds > 0 && news > 0, "{olds} old, {news} new: the test crashes at no interesting place");
}

#[test]
fn after_a_full_disk_the_store_is_opened_again_and_goes_on() {
    let disk = MemoryDisk::default();
    let (mut store, last) = prepared(&disk);
    disk.fail(Some(1), io::ErrorKind::StorageFull);
    assert!(store.change(|l| l.ingest(last.clone())).is_err());
    drop(store);
    assert!(Store::open(&setup(settings(), &disk)).is_err());
    disk.fail(None, io::ErrorKind::Other);
    let mut store = open(settings(), &disk);
    assert_eq!(store.batch(2).unwrap(), None);
    change(&mut store, |l| l.ingest(last));
    assert!(store.batch(2).unwrap().is_some());
}

fn file_setup(path: &Path) -> ReplaySetup {
    ReplaySetup { open: ReplaySetup::file(path), ..setup(settings(), &MemoryDisk::default()) }
}

#[test]
fn damage_is_told_and_never_read_as_another_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record.redb");
    run_calmly(&mut Store::open(&file_setup(&path)).unwrap(), 1..=3, CALM);
    let whole = contents(&Record::open(&path).unwrap());
    let good = fs::read(&path).unwrap();

    fs::write(&path, b"").unwrap();
    let error = Record::open(&path).unwrap_err();
    assert!(matches!(&error, RecordError::Damaged { .. }) && error.to_string().contains("restore"), "{error}");
    for keep in [100, good.len() / 2, good.len() - 4096] {
        fs::write(&path, &good[..keep]).unwrap();
        let error = Record::open(&path).map(|r| r.load().map(drop)).and_then(|r| r).unwrap_err();
        assert!(matches!(error, RecordError::Damaged { .. }), "cut to {keep}: {error:?}");
    }
    let mut told = 0;
    for i in 0..200usize {
        let mut bytes = good.clone();
        let bit = (i * 7919 + 13) * 8191 % (good.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        match Record::open(&path) {
            Err(RecordError::Damaged { .. }) => told += 1,
            Err(other) => panic!("bit {bit}: {other:?}"),
            // A bit of a free page, or one that the database can mend.
            Ok(record) => assert_eq!(contents(&record), whole, "bit {bit}: read as another state"),
        }
    }
    assert!(told > 0, "no flipped bit hit a page in use");
}

#[test]
fn the_second_process_is_told_who_has_the_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record.redb");
    let _lock = RunLock::acquire(dir.path()).unwrap();
    let _store = Store::open(&file_setup(&path)).unwrap();
    match Record::open(&path) {
        Err(RecordError::Locked { holder, .. }) => {
            assert!(holder.contains(&std::process::id().to_string()), "{holder}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn forgetting_bounds_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record.redb");
    let mut setup = file_setup(&path);
    let file = path.clone();
    setup.open = std::sync::Arc::new(move || Ok(Record::open(&file)?.with_evidence_rows(20)));
    let mut store = Store::open(&setup).unwrap();
    let mut sizes = Vec::new();
    for step in 1..=60 {
        run_calmly(&mut store, step..=step, CALM);
        change(&mut store, |l| l.forget(step - 1));
        store.compact().unwrap();
        sizes.push(fs::metadata(&path).unwrap().len());
    }
    assert_eq!(sizes[59], sizes[20], "the file grows: {sizes:?}");
}
