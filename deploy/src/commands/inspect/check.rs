//! `folgore inspect RUN --check`: what the record proves, and whether the files beside it agree.

use std::{fs, path::Path};

use anyhow::{Result, bail};
use folgore_learner::{
    checkpoint::Manifest,
    record::check::{Invariant, Report, check},
};
use serde_json::{Map, Value};

use super::{with_copy, writer};
use crate::{run_dir::checkpoint_steps, stream::quietly, summary::read_metrics};

/// Checks the run in `path`, says what holds, and fails if something does not.
pub(super) fn run(path: &Path, json: bool) -> Result<()> {
    let name = path.display();
    if let Some(writer) = writer(path) {
        bail!("{name}: in use by {writer}: its record can be checked once that one has stopped");
    }
    let mut report = with_copy(&path.join("record.redb"), check).map_err(anyhow::Error::msg)?;
    let files =
        [metrics(&report, &read_metrics(&path.join("metrics.jsonl"))?), saved(&report, &path.join("checkpoints"))];
    report.invariants.extend(files);
    let text = if json { format!("{}\n", serde_json::to_string_pretty(&report)?) } else { report.to_string() };
    quietly(text.as_bytes())?;
    let broken: Vec<&str> = report.invariants.iter().filter(|i| !i.holds()).map(|i| i.name).collect();
    if !broken.is_empty() {
        bail!("{name}: {} of {} invariants do not hold: {}", broken.len(), report.invariants.len(), broken.join(", "));
    }
    Ok(())
}

/// Each step is told once, and none that no batch was trained for.
fn metrics(report: &Report, lines: &[Map<String, Value>]) -> Invariant {
    let mut found = Invariant::new("metrics");
    let steps: Vec<u64> = lines.iter().filter_map(|line| line.get("step")?.as_u64()).collect();
    for (step, expected) in steps.iter().zip(1..) {
        found
            .expect(*step == expected, || format!("metrics.jsonl tells step {step} where step {expected} is expected"));
    }
    let (last, committed) = (steps.last().copied().unwrap_or(0), report.committed_step);
    // A step is told before it is committed; after a power cut, the last steps since the checkpoint may be untold.
    found
        .expect(last <= committed + 1, || format!("metrics.jsonl tells step {last}, and step {committed} is the last"));
    found.detail = format!("{} steps told once each", steps.len());
    found
}

/// Checkpoints hold the policies of the surviving line.
fn saved(report: &Report, folder: &Path) -> Invariant {
    let mut found = Invariant::new("checkpoints");
    let mut whole = 0;
    for step in checkpoint_steps(folder) {
        let text = fs::read_to_string(folder.join(format!("checkpoint-{step}/manifest.json"))).unwrap_or_default();
        // A folder without a manifest that can be read is no checkpoint, and a resume passes it over.
        let Ok(manifest) = serde_json::from_str::<Manifest>(&text) else { continue };
        whole += 1;
        let committed = report.committed_step;
        found.expect(step <= committed + 1, || format!("checkpoint {step} is there, and step {committed} is the last"));
        if let (Some(saved), Some(on_line)) = (manifest.policy, report.line.get(&step)) {
            found.expect(saved.digest == on_line.digest, || {
                format!("checkpoint {step} holds {saved}, the line has {on_line}")
            });
        }
    }
    found.detail = format!("{whole} checkpoints, all on the surviving line");
    found
}

#[cfg(test)]
mod tests {
    use folgore_protocol::{Digest, PolicyId};
    use serde_json::json;

    use super::*;

    fn report() -> Report {
        let policy = PolicyId { epoch: 1, step: 2, digest: Digest::of(b"2") };
        Report { invariants: Vec::new(), line: [(2, policy)].into(), committed_step: 2 }
    }

    #[test]
    fn a_step_is_told_once_and_in_its_turn() {
        let told = |steps: &[u64]| {
            let lines: Vec<_> = steps.iter().map(|s| json!({ "step": s }).as_object().cloned().unwrap()).collect();
            metrics(&report(), &lines).holds()
        };
        assert!(told(&[]) && told(&[1]) && told(&[1, 2, 3]));
        assert!(!told(&[1, 1]) && !told(&[2]) && !told(&[1, 2, 3, 4]));
    }

    #[test]
    fn checkpoints_are_those_of_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let save = |step: u64, digest: Digest| {
            let dir = folder.path().join(format!("checkpoint-{step}"));
            fs::create_dir_all(&dir).unwrap();
            let policy = PolicyId { epoch: 0, step, digest };
            let manifest = json!({
                "schema": 1, "step": step, "epoch": 0, "policy": policy, "identity": {}, "files": {},
            });
            fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
        };
        save(2, Digest::of(b"2"));
        save(3, Digest::of(b"3"));
        fs::create_dir_all(folder.path().join("checkpoint-9")).unwrap();
        let found = saved(&report(), folder.path());
        assert!(found.holds() && found.detail.starts_with("2 checkpoints"), "{found}");
        save(2, Digest::of(b"other"));
        assert!(saved(&report(), folder.path()).to_string().contains("checkpoint 2 holds 2@0"));
        save(2, Digest::of(b"2"));
        save(4, Digest::of(b"4"));
        assert!(!saved(&report(), folder.path()).holds());
    }
}
