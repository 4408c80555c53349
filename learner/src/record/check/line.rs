//! The surviving line of commits, derived from the log, and what must hold along it.

use std::collections::{BTreeMap, BTreeSet};

use folgore_protocol::{Digest, PolicyId};

use super::{Books, Invariant};
use crate::record::{Evidence, evidence::LogEntry};

/// One commit on the line.
#[derive(Clone, Debug)]
pub(super) struct Commit {
    pub(super) digest: Digest,
    pub(super) groups: u32,
    pub(super) opened: u64,
}

/// The line, and what went wrong on the way to it.
#[derive(Default)]
pub(super) struct Line {
    /// Commits that survive, by step.
    pub(super) commits: BTreeMap<u64, Commit>,
    /// Policies of the line, by step, where known.
    pub(super) policies: BTreeMap<u64, PolicyId>,
    /// All policies that were ever committed or taken over, by step.
    pub(super) published: BTreeMap<u64, BTreeSet<Digest>>,
    step: u64,
    epoch: u32,
    takeovers: u64,
    cut: u64,
    /// Steps that only a checkpoint tells of.
    untold: u64,
    /// Digest of each step's batch, on whatever line.
    batches: BTreeMap<u64, Digest>,
    twice: Vec<String>,
    shrunk: Vec<String>,
}

impl Line {
    pub(super) fn of(evidence: &Evidence) -> Self {
        let mut line = Self { step: evidence.pruned.step, epoch: evidence.pruned.epoch, ..Self::default() };
        for (number, entry) in &evidence.log {
            match entry {
                LogEntry::Takeover { epoch, step, policy, .. } => line.take_over(*number, *epoch, *step, *policy),
                LogEntry::Commit { epoch, step, policy, groups, opened, digest } => {
                    let commit = Commit { digest: *digest, groups: *groups, opened: *opened };
                    line.commit(*number, *epoch, *step, *policy, commit);
                }
            }
        }
        line
    }

    fn take_over(&mut self, number: u64, epoch: u32, step: u64, policy: Option<PolicyId>) {
        if epoch <= self.epoch {
            self.shrunk.push(format!("entry {number}: taken over with epoch {epoch} after epoch {}", self.epoch));
        }
        self.takeovers += 1;
        self.cut += self.commits.split_off(&(step + 1)).len() as u64;
        self.policies.split_off(&(step + 1));
        self.untold += step.saturating_sub(self.step);
        (self.epoch, self.step) = (epoch, step);
        self.publish(number, step, policy);
    }

    fn commit(&mut self, number: u64, epoch: u32, step: u64, policy: Option<PolicyId>, commit: Commit) {
        if epoch != self.epoch {
            let held = self.epoch;
            self.shrunk
                .push(format!("entry {number}: step {step} committed in epoch {epoch}, epoch {held} held the run"));
        }
        if self.commits.contains_key(&step) || step <= self.step {
            self.twice.push(format!("entry {number}: step {step} was trained already, and no takeover cut it off"));
        } else if step != self.step + 1 {
            self.shrunk.push(format!("entry {number}: step {step} committed after step {}", self.step));
        }
        let before = *self.batches.entry(step).or_insert(commit.digest);
        if before != commit.digest {
            self.twice.push(format!("entry {number}: step {step} was trained on another batch than before"));
        }
        let same = |(other, c): &(&u64, &Commit)| **other != step && c.groups > 0 && c.digest == commit.digest;
        if let Some((other, _)) = self.commits.iter().find(same) {
            self.twice.push(format!("entry {number}: step {step} was trained on the batch of step {other}"));
        }
        self.commits.insert(step, commit);
        (self.epoch, self.step) = (epoch, step);
        self.publish(number, step, policy);
    }

    fn publish(&mut self, number: u64, step: u64, policy: Option<PolicyId>) {
        let Some(policy) = policy else { return };
        if policy.step != step {
            self.shrunk.push(format!("entry {number}: step {step} has policy {policy}"));
        }
        if self.policies.get(&step).is_some_and(|known| known.digest != policy.digest) {
            self.shrunk.push(format!("entry {number}: step {step} has policy {policy}, and another one before"));
        }
        self.policies.insert(step, policy);
        self.published.entry(step).or_default().insert(policy.digest);
    }
}

impl Books<'_> {
    /// No batch was trained twice along the surviving line.
    pub(super) fn trained_once(&self) -> Invariant {
        let mut found = Invariant::new("line");
        let line = &self.line;
        found.checked = self.evidence.log.len() as u64;
        line.twice.iter().for_each(|what| found.expect(false, || what.clone()));
        found.detail = format!(
            "{} batches trained once each along the surviving line; {} trained again after {} takeovers",
            line.commits.len(),
            line.cut,
            line.takeovers
        );
        let folded = self.evidence.pruned.entries;
        if folded > 0 {
            found.detail += &format!("; {folded} commits and takeovers before them are folded");
        }
        if line.untold > 0 {
            found.detail += &format!("; {} steps known from their checkpoint only", line.untold);
        }
        found
    }

    /// Versions (epoch, step) only grew.
    pub(super) fn versions(&self) -> Invariant {
        let mut found = Invariant::new("versions");
        let (line, counters) = (&self.line, &self.snapshot.counters);
        found.checked = self.evidence.log.len() as u64;
        line.shrunk.iter().for_each(|what| found.expect(false, || what.clone()));
        found.expect((line.epoch, line.step) == (counters.epoch, counters.committed_step), || {
            let (epoch, step) = (counters.epoch, counters.committed_step);
            format!(
                "the log ends at epoch {} step {}, the counters at epoch {epoch} step {step}",
                line.epoch, line.step
            )
        });
        for (step, policy) in &self.snapshot.policies {
            let on_line = line.policies.get(step).is_none_or(|known| known.digest == policy.digest);
            found.expect(*step <= line.step && on_line, || format!("policy {policy} is not on the line"));
        }
        for ((number, _), expected) in self.evidence.log.iter().zip(self.evidence.pruned.entries..) {
            found.expect(*number == expected, || format!("entry {expected} of the log is missing: {number} follows"));
        }
        found.detail = format!("epoch {} step {}: grown through {} takeovers", line.epoch, line.step, line.takeovers);
        found
    }
}
