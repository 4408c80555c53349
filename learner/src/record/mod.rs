//! `record.redb`: what replay knows, on disk. One process opens it, one change is one durable transaction.
//!
//! Nothing here decides anything: [`Record::apply`] writes what the ledger decided, [`Record::load`] gives it back. All calls
//! block on the disk; callers keep them off the async runtime.

pub mod check;
pub mod codec;
mod disk;
mod error;
pub mod evidence;
pub mod rows;

use std::collections::{BTreeMap, BTreeSet};

use folgore_protocol::{Batch, Draws, EvalItem, EvalSummary, GroupId, GroupRecord, PolicyId, SeatKey, Trajectory};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};

pub use error::RecordError;
use error::Trouble;
use evidence::{GroupEnd, LogEntry, Pruned, Rules};
use rows::{Counters, EvalRow, GroupRow, QuestionRow, Secret, StepRow, StoredEvalItem, StoredTrajectory, Visit};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const STEPS: TableDefinition<u64, &[u8]> = TableDefinition::new("steps");
const GROUPS: TableDefinition<u64, &[u8]> = TableDefinition::new("groups");
const TRAJECTORIES: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("trajectories");
const POLICIES: TableDefinition<u64, &[u8]> = TableDefinition::new("policies");
const EVALUATIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("evaluations");
const EVAL_ITEMS: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("eval_items");
const GROUP_ENDS: TableDefinition<u64, &[u8]> = TableDefinition::new("group_ends");
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const QUESTIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("questions");
const VISITS: TableDefinition<&str, &[u8]> = TableDefinition::new("visits");
const PAST: TableDefinition<u64, &[u8]> = TableDefinition::new("past");

const COUNTERS: &str = "counters";
const IDENTITY: &str = "identity";
const RULES: &str = "rules";
const SECRET: &str = "secret";
const PRUNED: &str = "pruned";

/// Rows of evidence kept in each of its tables: some 10 MB.
const EVIDENCE_ROWS: u64 = 100_000;

/// Bytes below which the file is never compacted.
const COMPACT_BYTES_MIN: u64 = 32 << 20;

/// One row to write or to remove. The writes of one change are applied in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// The counters.
    Counters(Counters),
    /// What the run is, by name.
    Identity(BTreeMap<String, String>),
    /// A step.
    Step(u64, StepRow),
    /// A group.
    Group(GroupId, GroupRow),
    /// A trajectory, by its seat.
    Trajectory(Box<Trajectory>),
    /// Removes a group and its trajectories.
    RemoveGroup(GroupId),
    /// Removes a step; its groups are removed by themselves.
    RemoveStep(u64),
    /// The policy of a step.
    Policy(u64, PolicyId),
    /// Removes the policy of a step.
    RemovePolicy(u64),
    /// An evaluation, by its label.
    Eval(String, EvalRow),
    /// A sample of an evaluation, by its seat.
    EvalItem(EvalItem),
    /// Removes the samples of the groups in this range.
    RemoveEvalItems(GroupId, GroupId),
    /// Removes a trajectory that is void.
    RemoveTrajectory(GroupId, u32),
    /// The end of a group.
    GroupEnd(GroupId, GroupEnd),
    /// An entry of the log, by its number.
    Log(u64, LogEntry),
    /// The rules of this run so far, the present ones last.
    Rules(Vec<Rules>),
    /// What the tokens of seats are made with.
    Secret(Secret),
    /// What is known of a question, by the id of its task.
    Question(String, QuestionRow),
    /// What groups of a question came to, by the id of its task.
    Visits(String, Vec<Visit>),
    /// Keeps the trajectory of a seat, which has one, as a success with this number.
    KeepPast(u64, GroupId, u32),
    /// Removes a success.
    RemovePast(u64),
}

/// Everything that decisions need; trajectories stay on disk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The counters.
    pub counters: Counters,
    /// All steps that are not forgotten.
    pub steps: BTreeMap<u64, StepRow>,
    /// The groups of steps that have no batch yet.
    pub groups: BTreeMap<GroupId, GroupRow>,
    /// Policies of committed steps.
    pub policies: BTreeMap<u64, PolicyId>,
    /// Evaluations.
    pub evals: BTreeMap<String, EvalRow>,
    /// The samples that are in: (group, sample).
    pub eval_done: BTreeSet<(GroupId, u32)>,
    /// The rules of this run so far, the present ones last.
    pub rules: Vec<Rules>,
    /// What the tokens of seats are made with; none in a new record.
    pub secret: Option<Secret>,
    /// Questions of which successes are kept or that are retired, by the id of their task.
    pub questions: BTreeMap<String, QuestionRow>,
    /// What the last groups of questions came to, by the id of their task.
    pub visits: BTreeMap<String, Vec<Visit>>,
}

/// What is compared by [`check`] besides the [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Ends of groups.
    pub ends: BTreeMap<GroupId, GroupEnd>,
    /// The log of takeovers and commits, by number.
    pub log: Vec<(u64, LogEntry)>,
    /// What is left of older evidence.
    pub pruned: Pruned,
    /// All groups that have rows.
    pub groups: BTreeMap<GroupId, GroupRow>,
    /// All trajectories that have rows, by group and sample.
    pub trajectories: BTreeMap<(GroupId, u32), Kept>,
    /// All samples of evaluations, by group and sample.
    pub eval_items: BTreeMap<(GroupId, u32), SeatKey>,
}

/// A trajectory as far as it is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The seat that it says it fills.
    pub seat: SeatKey,
    /// The distinct policies of its tokens.
    pub policies: Vec<PolicyId>,
    /// Who made it.
    pub worker: String,
    /// Its score, if it has one.
    pub total: Option<f64>,
}

/// The open file.
#[derive(Debug)]
pub struct Record {
    db: Database,
    name: String,
    evidence_rows: u64,
}

impl Record {
    /// Stands on an open database, whose tables are made if they are not there. `name` is for errors.
    fn on(db: Database, name: String) -> Result<Self, RecordError> {
        let record = Self { db, name, evidence_rows: EVIDENCE_ROWS };
        record.apply(&[])?;
        Ok(record)
    }

    /// Keeps `rows` rows in each table of evidence, at least 1, and folds older ones.
    #[must_use]
    pub fn with_evidence_rows(self, rows: u64) -> Self {
        Self { evidence_rows: rows.max(1), ..self }
    }

    /// Writes `writes` in one durable transaction: all of them or none.
    pub fn apply(&self, writes: &[Write]) -> Result<(), RecordError> {
        self.named(|| {
            let transaction = self.db.begin_write()?;
            let mut tables = Tables::open(&transaction, self.evidence_rows)?;
            for write in writes {
                tables.write(write)?;
            }
            drop(tables);
            Ok(transaction.commit()?)
        })
    }

    /// Reads what decisions need.
    pub fn load(&self) -> Result<Snapshot, RecordError> {
        self.named(|| {
            let transaction = self.db.begin_read()?;
            let meta = transaction.open_table(META)?;
            let mut snapshot = Snapshot::default();
            if let Some(row) = meta.get(COUNTERS)? {
                snapshot.counters = decode("counters", row.value())?;
            }
            if let Some(row) = meta.get(RULES)? {
                snapshot.rules = decode("the rules", row.value())?;
            }
            snapshot.secret = meta.get(SECRET)?.map(|row| decode("the secret", row.value())).transpose()?;
            for entry in transaction.open_table(STEPS)?.iter()? {
                let (step, row) = entry?;
                snapshot.steps.insert(step.value(), decode("a step", row.value())?);
            }
            for entry in transaction.open_table(GROUPS)?.iter()? {
                let (id, row) = entry?;
                let group: GroupRow = decode("a group", row.value())?;
                if snapshot.steps.get(&group.step).is_none_or(|step| step.batch.is_none()) {
                    snapshot.groups.insert(GroupId(id.value()), group);
                }
            }
            for entry in transaction.open_table(POLICIES)?.iter()? {
                let (step, row) = entry?;
                snapshot.policies.insert(step.value(), decode("a policy", row.value())?);
            }
            for entry in transaction.open_table(EVALUATIONS)?.iter()? {
                let (label, row) = entry?;
                snapshot.evals.insert(label.value().to_owned(), decode("an evaluation", row.value())?);
            }
            for entry in transaction.open_table(QUESTIONS)?.iter()? {
                let (id, row) = entry?;
                snapshot.questions.insert(id.value().to_owned(), decode("a question", row.value())?);
            }
            for entry in transaction.open_table(VISITS)?.iter()? {
                let (id, row) = entry?;
                snapshot.visits.insert(id.value().to_owned(), decode("what groups came to", row.value())?);
            }
            for entry in transaction.open_table(EVAL_ITEMS)?.iter()? {
                let (group, sample) = entry?.0.value();
                snapshot.eval_done.insert((GroupId(group), sample));
            }
            Ok(snapshot)
        })
    }

    /// The highest epoch that a head took.
    pub fn epoch(&self) -> Result<u32, RecordError> {
        self.load().map(|snapshot| snapshot.counters.epoch)
    }

    /// What the run was when its record began; none in a new record.
    pub fn identity(&self) -> Result<Option<BTreeMap<String, String>>, RecordError> {
        self.named(|| {
            let table = self.db.begin_read()?.open_table(META)?;
            table.get(IDENTITY)?.map(|row| decode("the identity", row.value())).transpose()
        })
    }

    /// The batch of `step` as it was recorded; none if there is none.
    pub fn batch(&self, step: u64) -> Result<Option<Batch>, RecordError> {
        self.named(|| {
            let transaction = self.db.begin_read()?;
            let Some(row) = transaction.open_table(STEPS)?.get(step)? else { return Ok(None) };
            let row: StepRow = decode("a step", row.value())?;
            let Some(ids) = row.batch else { return Ok(None) };
            let groups = transaction.open_table(GROUPS)?;
            let trajectories = transaction.open_table(TRAJECTORIES)?;
            let mut draws = Draws::default();
            let groups = ids.into_iter().map(|id| {
                let group = groups.get(id.0)?.ok_or_else(|| missing(&format!("group {id} of step {step}")))?;
                let group: GroupRow = decode("a group", group.value())?;
                draws.add(&group.draws());
                let members = members(&trajectories, id)?;
                if members.len() != group.seats.len() {
                    return Err(missing(&format!("a member of group {id} of step {step}")));
                }
                Ok(GroupRecord { id, task: group.task, members })
            });
            let groups = groups.collect::<Result<Vec<_>, Trouble>>()?;
            Ok(Some(Batch {
                step,
                groups,
                filtered_groups: row.left_out,
                unscored_groups: row.unscored,
                passed_over: row.passed_over,
                draws,
            }))
        })
    }

    /// The trajectories of the group `id`, by sample.
    pub fn members(&self, id: GroupId) -> Result<Vec<Trajectory>, RecordError> {
        self.named(|| members(&self.db.begin_read()?.open_table(TRAJECTORIES)?, id))
    }

    /// The successes with these numbers, as far as they are still kept.
    pub fn past(&self, numbers: &[u64]) -> Result<Vec<Trajectory>, RecordError> {
        self.named(|| {
            let table = self.db.begin_read()?.open_table(PAST)?;
            let found =
                numbers.iter().map(|number| table.get(number)?.map(|row| decode_trajectory(row.value())).transpose());
            Ok(found.collect::<Result<Vec<_>, Trouble>>()?.into_iter().flatten().collect())
        })
    }

    /// The evaluation `label` with the samples that are in; none if there is none. `groups` gives the ids of its groups.
    pub fn eval(
        &self,
        label: &str,
        groups: impl Fn(&EvalRow) -> (GroupId, GroupId),
    ) -> Result<Option<EvalSummary>, RecordError> {
        self.named(|| {
            let transaction = self.db.begin_read()?;
            let Some(row) = transaction.open_table(EVALUATIONS)?.get(label)? else { return Ok(None) };
            let row: EvalRow = decode("an evaluation", row.value())?;
            let (first, last) = groups(&row);
            let items = transaction.open_table(EVAL_ITEMS)?;
            let items = items.range((first.0, 0)..=(last.0, u32::MAX))?;
            let items = items.map(|entry| Ok(decode::<StoredEvalItem>("an evaluation's sample", entry?.1.value())?.0));
            let items = items.collect::<Result<Vec<_>, Trouble>>()?;
            let expected = row.draws.len() as u32;
            Ok(Some(EvalSummary { label: label.to_owned(), policy: row.policy, expected, items }))
        })
    }

    /// Reads all that [`check`] compares.
    pub fn evidence(&self) -> Result<Evidence, RecordError> {
        self.named(|| {
            let transaction = self.db.begin_read()?;
            let mut evidence = Evidence::default();
            if let Some(row) = transaction.open_table(META)?.get(PRUNED)? {
                evidence.pruned = decode("the folded evidence", row.value())?;
            }
            for entry in transaction.open_table(GROUP_ENDS)?.iter()? {
                let (id, row) = entry?;
                evidence.ends.insert(GroupId(id.value()), decode("the end of a group", row.value())?);
            }
            for entry in transaction.open_table(LOG)?.iter()? {
                let (number, row) = entry?;
                evidence.log.push((number.value(), decode("an entry of the log", row.value())?));
            }
            for entry in transaction.open_table(GROUPS)?.iter()? {
                let (id, row) = entry?;
                evidence.groups.insert(GroupId(id.value()), decode("a group", row.value())?);
            }
            for entry in transaction.open_table(TRAJECTORIES)?.iter()? {
                let (key, row) = entry?;
                let (group, sample) = key.value();
                let trajectory = decode_trajectory(row.value())?;
                let (policies, total) = (trajectory.policies(), trajectory.outcome.total());
                let kept = Kept { seat: trajectory.seat, policies, worker: trajectory.worker, total };
                evidence.trajectories.insert((GroupId(group), sample), kept);
            }
            for entry in transaction.open_table(EVAL_ITEMS)?.iter()? {
                let (key, row) = entry?;
                let (group, sample) = key.value();
                let item = decode::<StoredEvalItem>("an evaluation's sample", row.value())?.0;
                evidence.eval_items.insert((GroupId(group), sample), item.seat);
            }
            Ok(evidence)
        })
    }

    /// Gives free pages back to the file system where more than half of a large file is unused; true if it did.
    pub fn compact(&mut self) -> Result<bool, RecordError> {
        let stats = self.named(|| {
            let transaction = self.db.begin_write()?;
            let stats = transaction.stats()?;
            transaction.abort()?;
            Ok(stats)
        })?;
        let page = stats.page_size() as u64;
        let allocated = stats.allocated_pages() * page;
        let unused = stats.fragmented_bytes();
        if allocated + unused < COMPACT_BYTES_MIN || unused < allocated {
            return Ok(false);
        }
        let name = self.name.clone();
        self.db.compact().map_err(|e| RecordError::from_trouble(&name, e.into()))
    }

    fn named<T>(&self, work: impl FnOnce() -> Result<T, Trouble>) -> Result<T, RecordError> {
        work().map_err(|trouble| RecordError::from_trouble(&self.name, trouble))
    }
}

fn decode<T: serde::de::DeserializeOwned>(what: &str, row: &[u8]) -> Result<T, Trouble> {
    codec::decode(row).map_err(|e| Trouble::Row(what.to_owned(), e))
}

fn members(
    trajectories: &impl ReadableTable<(u64, u32), &'static [u8]>,
    id: GroupId,
) -> Result<Vec<Trajectory>, Trouble> {
    let rows = trajectories.range((id.0, 0)..=(id.0, u32::MAX))?;
    rows.map(|row| decode_trajectory(row?.1.value())).collect()
}

fn decode_trajectory(row: &[u8]) -> Result<Trajectory, Trouble> {
    Ok(decode::<StoredTrajectory>("a trajectory", row)?.0)
}

fn encode<T: serde::Serialize>(what: &str, value: &T) -> Result<Vec<u8>, Trouble> {
    codec::encode(value).map_err(|e| Trouble::Row(what.to_owned(), e))
}

fn missing(what: &str) -> Trouble {
    Trouble::Row(what.to_owned(), codec::RowError::Damaged("the row is missing".into()))
}

type Table<'t, K> = redb::Table<'t, K, &'static [u8]>;

/// The tables of one write transaction.
struct Tables<'t> {
    meta: Table<'t, &'static str>,
    steps: Table<'t, u64>,
    groups: Table<'t, u64>,
    trajectories: Table<'t, (u64, u32)>,
    policies: Table<'t, u64>,
    evals: Table<'t, &'static str>,
    eval_items: Table<'t, (u64, u32)>,
    group_ends: Table<'t, u64>,
    log: Table<'t, u64>,
    questions: Table<'t, &'static str>,
    visits: Table<'t, &'static str>,
    past: Table<'t, u64>,
    evidence_rows: u64,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction, evidence_rows: u64) -> Result<Self, Trouble> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            steps: transaction.open_table(STEPS)?,
            groups: transaction.open_table(GROUPS)?,
            trajectories: transaction.open_table(TRAJECTORIES)?,
            policies: transaction.open_table(POLICIES)?,
            evals: transaction.open_table(EVALUATIONS)?,
            eval_items: transaction.open_table(EVAL_ITEMS)?,
            group_ends: transaction.open_table(GROUP_ENDS)?,
            log: transaction.open_table(LOG)?,
            questions: transaction.open_table(QUESTIONS)?,
            visits: transaction.open_table(VISITS)?,
            past: transaction.open_table(PAST)?,
            evidence_rows,
        })
    }

    fn write(&mut self, write: &Write) -> Result<(), Trouble> {
        match write {
            Write::Counters(row) => drop(self.meta.insert(COUNTERS, encode("counters", row)?.as_slice())?),
            Write::Identity(row) => drop(self.meta.insert(IDENTITY, encode("the identity", row)?.as_slice())?),
            Write::Step(step, row) => drop(self.steps.insert(step, encode("a step", row)?.as_slice())?),
            Write::Group(id, row) => drop(self.groups.insert(id.0, encode("a group", row)?.as_slice())?),
            Write::Policy(step, row) => drop(self.policies.insert(step, encode("a policy", row)?.as_slice())?),
            Write::Eval(label, row) => {
                drop(self.evals.insert(label.as_str(), encode("an evaluation", row)?.as_slice())?)
            }
            Write::Trajectory(t) => {
                let row = encode("a trajectory", &StoredTrajectory((**t).clone()))?;
                drop(self.trajectories.insert((t.seat.group.0, t.seat.sample), row.as_slice())?);
            }
            Write::EvalItem(item) => {
                let row = encode("an evaluation's sample", &StoredEvalItem(item.clone()))?;
                drop(self.eval_items.insert((item.seat.group.0, item.seat.sample), row.as_slice())?);
            }
            Write::RemoveStep(step) => drop(self.steps.remove(step)?),
            Write::RemovePolicy(step) => drop(self.policies.remove(step)?),
            Write::RemoveGroup(id) => {
                drop(self.groups.remove(id.0)?);
                self.trajectories.retain_in((id.0, 0)..=(id.0, u32::MAX), |_, _| false)?;
            }
            Write::RemoveEvalItems(first, last) => {
                self.eval_items.retain_in((first.0, 0)..=(last.0, u32::MAX), |_, _| false)?;
            }
            Write::RemoveTrajectory(group, sample) => drop(self.trajectories.remove((group.0, *sample))?),
            Write::GroupEnd(id, row) => {
                drop(self.group_ends.insert(id.0, encode("the end of a group", row)?.as_slice())?);
                if self.group_ends.len()? > self.evidence_rows {
                    self.prune()?;
                }
            }
            Write::Log(number, row) => {
                drop(self.log.insert(number, encode("an entry of the log", row)?.as_slice())?);
                if self.log.len()? > self.evidence_rows {
                    self.prune()?;
                }
            }
            Write::Rules(row) => drop(self.meta.insert(RULES, encode("the rules", row)?.as_slice())?),
            Write::Secret(row) => drop(self.meta.insert(SECRET, encode("the secret", row)?.as_slice())?),
            Write::Question(id, row) => {
                drop(self.questions.insert(id.as_str(), encode("a question", row)?.as_slice())?)
            }
            Write::Visits(id, row) => {
                drop(self.visits.insert(id.as_str(), encode("what groups came to", row)?.as_slice())?)
            }
            Write::KeepPast(number, group, sample) => {
                let row = self.trajectories.get((group.0, *sample))?;
                let row = row.ok_or_else(|| missing(&format!("the trajectory of seat {group}.{sample}")))?;
                drop(self.past.insert(number, row.value())?);
            }
            Write::RemovePast(number) => drop(self.past.remove(number)?),
        }
        Ok(())
    }

    /// Folds the oldest evidence beyond the bound into one row.
    fn prune(&mut self) -> Result<(), Trouble> {
        let mut pruned: Pruned = match self.meta.get(PRUNED)? {
            Some(row) => decode("the folded evidence", row.value())?,
            None => Pruned::default(),
        };
        while self.group_ends.len()? > self.evidence_rows
            && let Some((_, row)) = self.group_ends.pop_first()?
        {
            pruned.fold_group(&decode("the end of a group", row.value())?, row.value());
        }
        while self.log.len()? > self.evidence_rows
            && let Some((_, row)) = self.log.pop_first()?
        {
            pruned.fold_entry(&decode("an entry of the log", row.value())?, row.value());
        }
        drop(self.meta.insert(PRUNED, encode("the folded evidence", &pruned)?.as_slice())?);
        Ok(())
    }
}
