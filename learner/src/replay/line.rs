//! The line of checkpoints: who holds the run, what is committed, and what may be forgotten. Each turn of it is logged.

use folgore_protocol::{GroupId, PolicyId};

use super::{events::ReplayEvent, ingest::same_weights, ledger::Ledger};
use crate::record::{
    Write,
    evidence::{LogEntry, batch_digest},
};

impl Ledger {
    /// A learner takes over from the checkpoint of `step`. Gives its epoch, which is at least `min_epoch`, and the last
    /// recorded step.
    ///
    /// # Errors
    /// If batches after `step` are forgotten: then there is no way back to it.
    pub fn resume(
        &mut self,
        step: u64,
        policy: Option<PolicyId>,
        first_free_group: u64,
        min_epoch: u32,
    ) -> Result<(u32, u64), String> {
        let forgotten = self.counters.forgotten_step;
        if step < forgotten {
            return Err(format!(
                "cannot resume from step {step}: the record has forgotten the batches up to step {forgotten}; start afresh"
            ));
        }
        self.log_uncommitted(step, policy);
        let epoch = self.counters.epoch.saturating_add(1).max(min_epoch);
        let used_up = (self.counters.next_group, self.counters.next_group.max(first_free_group));
        self.log(LogEntry::Takeover { epoch, step, policy, skipped: used_up });
        self.counters.epoch = epoch;
        self.counters.committed_step = step;
        self.counters.next_group = used_up.1;
        self.counters.skipped_groups += used_up.1 - used_up.0;
        // Policies beyond the checkpoint were published on a line that is cut off here.
        for cut in self.policies.split_off(&(step + 1)).into_keys() {
            self.change.writes.push(Write::RemovePolicy(cut));
        }
        if let Some(policy) = policy {
            self.know_policy(step, policy);
        }
        self.drop_overtaken(step);
        // A step that had nothing to train on gets another try.
        let exhausted: Vec<u64> = self.gathered_steps().filter(|s| self.exhausted(*s)).collect();
        for step in exhausted {
            self.step_mut(step).opened = 0;
        }
        self.change.events.push(ReplayEvent::RunResumed { step, epoch });
        self.advance();
        let recorded = self.steps.iter().filter(|(_, row)| row.batch.is_some()).map(|(s, _)| *s).max();
        Ok((epoch, recorded.unwrap_or(step).max(step)))
    }

    /// A checkpoint of `step` says that batches up to it were trained, though their commits never came: logs them.
    fn log_uncommitted(&mut self, step: u64, policy: Option<PolicyId>) {
        for s in self.counters.committed_step + 1..=step {
            let of_this_step = policy.filter(|_| s == step);
            let Some(entry) = self.commit_entry(s, of_this_step) else { return };
            self.log(entry);
        }
    }

    /// Steps that were still gathered although their checkpoint exists: the record is older than the checkpoint.
    fn drop_overtaken(&mut self, step: u64) {
        let overtaken: Vec<u64> = self.gathered_steps().filter(|s| *s <= step).collect();
        for overtaken in overtaken {
            let groups: Vec<GroupId> = self.groups_of(overtaken).collect();
            groups.into_iter().for_each(|id| self.drop_group(id, "overtaken", "its step is trained already".into()));
            self.steps.remove(&overtaken);
            self.change.writes.push(Write::RemoveStep(overtaken));
        }
    }

    /// `step` is trained.
    ///
    /// # Errors
    /// If the step has no batch, leaves one out, was committed otherwise, or the writer's epoch is over.
    pub fn commit(&mut self, step: u64, policy: PolicyId) -> Result<(), String> {
        let (committed, epoch) = (self.counters.committed_step, self.counters.epoch);
        if policy.epoch < epoch {
            return Err(format!("step {step}: epoch {} is over, another learner holds epoch {epoch}", policy.epoch));
        }
        if policy.step != step {
            return Err(format!("step {step}: expected the policy of that step, got {policy}"));
        }
        if step <= committed {
            return match self.policies.get(&step) {
                Some(known) if !same_weights(known, &policy) => {
                    Err(format!("step {step} was committed with policy {known}, got {policy}; resume first"))
                }
                _ => Ok(()),
            };
        }
        let entry = self.commit_entry(step, Some(policy)).filter(|_| step == committed + 1);
        let Some(entry) = entry else {
            return Err(format!("step {step} cannot be committed: {}", self.why_not_yet(step)));
        };
        self.log(entry);
        self.counters.committed_step = step;
        self.know_policy(step, policy);
        self.change.events.push(ReplayEvent::StepCommitted { step, policy });
        self.advance();
        Ok(())
    }

    /// The commit of `step` as it is logged; none if the step has no batch.
    fn commit_entry(&self, step: u64, policy: Option<PolicyId>) -> Option<LogEntry> {
        let row = self.steps.get(&step)?;
        let ids = row.batch.as_ref()?;
        let (groups, digest) = (ids.len() as u32, batch_digest(ids));
        Some(LogEntry::Commit { epoch: self.counters.epoch, step, policy, groups, opened: row.opened, digest })
    }

    fn log(&mut self, entry: LogEntry) {
        self.change.writes.push(Write::Log(self.counters.next_entry, entry));
        self.counters.next_entry += 1;
    }

    fn know_policy(&mut self, step: u64, policy: PolicyId) {
        self.policies.insert(step, policy);
        self.change.writes.push(Write::Policy(step, policy));
    }

    /// Batches of steps up to `step` are not needed any more; gives the steps that were removed.
    pub fn forget(&mut self, step: u64) -> Vec<u64> {
        let until = step.min(self.counters.committed_step).saturating_sub(self.settings.retention_steps);
        let gone: Vec<u64> = self.steps.range(..=until).map(|(s, _)| *s).collect();
        for step in &gone {
            let ids = self.steps.remove(step).and_then(|row| row.batch).unwrap_or_default();
            self.change.writes.extend(ids.into_iter().map(Write::RemoveGroup));
            self.change.writes.push(Write::RemoveStep(*step));
        }
        let oldest = self.settings.oldest_policy(until + 1);
        let policies: Vec<u64> = self.policies.range(..oldest).map(|(s, _)| *s).collect();
        for step in policies {
            self.policies.remove(&step);
            self.change.writes.push(Write::RemovePolicy(step));
        }
        self.counters.forgotten_step = self.counters.forgotten_step.max(until);
        gone
    }
}
