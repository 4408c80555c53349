//! The ledger with its record: a decision is durable before anybody hears of it.

use std::{path::PathBuf, sync::Arc};

use folgore_protocol::{Batch, EvalSummary, Given, GroupId, Past, RolloutJob, Trajectory};

use super::{
    evals::group_ids,
    events::ReplayEvent,
    identity::{Difference, RunIdentity},
    ledger::Ledger,
    settings::ReplaySettings,
    tasks::TaskSource,
};
use crate::record::{
    Record, RecordError, Write,
    check::{Report, check},
    rows::Secret,
};

/// Opens the record: [`ReplaySetup::file`] in a run, a failing disk in a test.
pub type OpenRecord = Arc<dyn Fn() -> Result<Record, RecordError> + Send + Sync>;

/// Everything that replay needs to begin or to go on.
#[derive(Clone)]
pub struct ReplaySetup {
    /// Where the record is.
    pub open: OpenRecord,
    /// The numbers.
    pub settings: ReplaySettings,
    /// What the run is; must be what it was.
    pub identity: RunIdentity,
    /// Goes on although the identity differs, and records the new one.
    pub force: bool,
    /// What is trained on.
    pub train: Arc<dyn TaskSource>,
    /// What is evaluated on.
    pub held_out: Arc<dyn TaskSource>,
}

impl ReplaySetup {
    /// The record in the file `path` (`record.redb` of the run).
    pub fn file(path: impl Into<PathBuf>) -> OpenRecord {
        let path = path.into();
        Arc::new(move || Record::open(&path))
    }
}

/// Why replay cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The run is another one now.
    #[error("this run began otherwise ({}): restore that, choose another run name, or go on all the same with --force", list(.0))]
    Identity(Vec<Difference>),
    /// The system has no randomness to give.
    #[error("no random numbers from the system: {0}")]
    Random(String),
    /// The settings allow no batch.
    #[error("{0}")]
    Settings(String),
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn new_secret() -> Result<Secret, ReplayError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| ReplayError::Random(e.to_string()))?;
    Ok(Secret(bytes))
}

/// The open record and the ledger that it holds.
pub struct Store {
    record: Record,
    ledger: Ledger,
}

impl Store {
    /// Opens or creates the record and goes on from it.
    pub fn open(setup: &ReplaySetup) -> Result<Self, ReplayError> {
        let record = (setup.open)()?;
        let differences = match record.identity()? {
            Some(facts) => RunIdentity::from_facts(facts).compare(&setup.identity),
            None => Vec::new(),
        };
        if !differences.is_empty() {
            if !setup.force {
                return Err(ReplayError::Identity(differences));
            }
            tracing::warn!(differences = list(&differences), "the run goes on although it began otherwise");
        }
        let mut snapshot = record.load()?;
        let mut writes = vec![Write::Identity(setup.identity.facts().clone())];
        if snapshot.secret.is_none() {
            let secret = new_secret()?;
            writes.push(Write::Secret(secret.clone()));
            snapshot.secret = Some(secret);
        }
        let (train, held_out) = (setup.train.clone(), setup.held_out.clone());
        let mut ledger =
            Ledger::new(setup.settings.clone(), train, held_out, snapshot).map_err(ReplayError::Settings)?;
        writes.extend(ledger.take_change().writes);
        record.apply(&writes)?;
        Ok(Self { record, ledger })
    }

    /// Runs `decide` and makes what it changed durable. After an error the ledger is ahead of the record: drop the store and
    /// open it again.
    pub fn change<T>(&mut self, decide: impl FnOnce(&mut Ledger) -> T) -> Result<(T, Vec<ReplayEvent>), RecordError> {
        let value = decide(&mut self.ledger);
        let change = self.ledger.take_change();
        if !change.writes.is_empty() {
            self.record.apply(&change.writes)?;
        }
        Ok((value, change.events))
    }

    /// [`Ledger::open_seats`], with the successes that seats may be filled with.
    pub fn open_seats(
        &mut self,
        now_ms: u64,
        max: usize,
        reissue: bool,
    ) -> Result<(Vec<RolloutJob>, Vec<ReplayEvent>), RecordError> {
        let (mut jobs, events) = self.change(|ledger| ledger.open_seats(now_ms, max, reissue))?;
        for job in &mut jobs {
            if let Some(Given::Experience { past }) = &mut job.given {
                let kept = self.record.past(&self.ledger.past_of(&job.seat))?;
                *past = kept.into_iter().map(|t| Past { rows: t.rows, stop_reason: t.stop_reason }).collect();
            }
        }
        Ok((jobs, events))
    }

    /// The ledger as it stands, all of it durable.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The recorded batch of `step`, if it is complete.
    pub fn batch(&self, step: u64) -> Result<Option<Batch>, RecordError> {
        self.record.batch(step)
    }

    /// The trajectories of the group `id`, by sample.
    pub fn members(&self, id: GroupId) -> Result<Vec<Trajectory>, RecordError> {
        self.record.members(id)
    }

    /// The evaluation `label` as far as it has come.
    pub fn eval(&self, label: &str) -> Result<Option<EvalSummary>, RecordError> {
        self.record.eval(label, group_ids)
    }

    /// Proves from the record what became of everything.
    pub fn check(&self) -> Result<Report, RecordError> {
        check(&self.record)
    }

    /// Gives unused space back to the file system where that is worth its time.
    pub fn compact(&mut self) -> Result<bool, RecordError> {
        self.record.compact()
    }
}
