//! The state machine of replay: seats, groups, steps, and which batch they make.
//!
//! Pure: no clock, no disk, no randomness of its own. A method changes the ledger and notes which rows changed; the caller
//! takes them with [`Ledger::take_change`] and makes them durable in one transaction before it tells anybody. If that fails,
//! the ledger is thrown away and loaded again.
//!
//! **Why arrival order cannot matter.** The id of a group is its position in the stream of tasks, so what a group asks and
//! how its seats are seeded follows from its id. A group is left out for what is in it (no score after `max_draws` draws,
//! equal rewards, stale), and then the next free id takes its place. The batch is the kept groups in the order of their ids:
//! with the smallest `k` for which the ids up to `k` hold `num_prompts` kept groups, whichever of them came in first.
//! Replacing a group at once instead of at the end of a generation round reaches the same `k`, sooner.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use folgore_config::replay::OnEmptyBatch;
use folgore_protocol::{
    DifficultyStatus, ExperienceStatus, GroupId, Outcome, PolicyId, Purpose, ReplayStatus, SeatKey, Trajectory,
};

use super::{
    curriculum::{Difficulty, QUESTIONS_MAX},
    evals::{Evaluation, is_eval},
    events::ReplayEvent,
    experience::Pool,
    ingest::{Ingested, Refusal, check_content, same_weights},
    issue::Issues,
    settings::ReplaySettings,
    tasks::TaskSource,
};
use crate::record::{
    Snapshot, Write,
    evidence::{DrawEnd, Fate, GroupEnd},
    rows::{Counters, Filled, GroupRow, Secret, StepRow},
};

/// Why a group is dropped whose members all got the same.
pub(super) const EQUAL_REWARDS: &str = "equal_rewards";

/// What a method changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Rows to write, in order, in one transaction.
    pub writes: Vec<Write>,
    /// What to tell once they are durable.
    pub events: Vec<ReplayEvent>,
}

/// Seats, groups, steps and evaluations of one run.
pub struct Ledger {
    pub(super) settings: ReplaySettings,
    pub(super) train: Arc<dyn TaskSource>,
    pub(super) held_out: Arc<dyn TaskSource>,
    /// What the policy did right before, where that is kept.
    pub(super) pool: Option<Pool>,
    /// How the questions did that were asked, where that decides which are.
    pub(super) difficulty: Option<Difficulty>,
    pub(super) counters: Counters,
    pub(super) steps: BTreeMap<u64, StepRow>,
    /// Groups of steps that have no batch.
    pub(super) groups: BTreeMap<GroupId, GroupRow>,
    pub(super) policies: BTreeMap<u64, PolicyId>,
    pub(super) secret: Secret,
    pub(super) evals: BTreeMap<String, Evaluation>,
    pub(super) issues: Issues,
    pub(super) change: Change,
    pub(super) dirty_groups: BTreeSet<GroupId>,
    dirty_steps: BTreeSet<u64>,
    counters_before: Counters,
}

impl Ledger {
    /// Continues from `snapshot`; an empty one begins a run. Opens what may be open: take the change.
    ///
    /// # Errors
    /// If the settings allow no batch, or there are no tasks.
    pub fn new(
        settings: ReplaySettings,
        train: Arc<dyn TaskSource>,
        held_out: Arc<dyn TaskSource>,
        snapshot: Snapshot,
    ) -> Result<Self, String> {
        settings.check()?;
        if train.is_empty() {
            return Err("the training set is empty: there is nothing to ask".into());
        }
        if settings.curriculum.is_some() && train.len() > QUESTIONS_MAX {
            let got = train.len();
            return Err(format!(
                "data.curriculum: expected at most {QUESTIONS_MAX} questions, got {got}: see data.max_rows"
            ));
        }
        let secret = snapshot.secret.ok_or("the record holds no secret for the tokens of seats")?;
        let evals = snapshot.evals.into_iter().map(|(label, row)| (label, Evaluation::new(row, &snapshot.eval_done)));
        let pool = settings.experience.clone();
        let (members, questions) = (settings.num_generations, train.len());
        let pool = pool.map(|experience| Pool::new(experience, members, questions, snapshot.questions));
        let curriculum = settings.curriculum.clone();
        let difficulty = curriculum.map(|c| Difficulty::new(c, settings.max_staleness, snapshot.visits));
        let mut ledger = Self {
            pool,
            difficulty,
            settings,
            train,
            held_out,
            counters_before: snapshot.counters.clone(),
            counters: snapshot.counters,
            steps: snapshot.steps,
            groups: snapshot.groups,
            policies: snapshot.policies,
            secret,
            evals: evals.collect(),
            issues: Issues::default(),
            change: Change::default(),
            dirty_groups: BTreeSet::new(),
            dirty_steps: BTreeSet::new(),
        };
        let (rules, mut known) = (ledger.settings.rules(), snapshot.rules);
        if known.last() != Some(&rules) {
            known.push(rules);
            ledger.change.writes.push(Write::Rules(known));
        }
        ledger.advance();
        Ok(ledger)
    }

    /// What changed since the last call; empty if nothing did.
    pub fn take_change(&mut self) -> Change {
        let mut change = std::mem::take(&mut self.change);
        let groups = std::mem::take(&mut self.dirty_groups);
        // A group that is gone was removed where it was dropped, or belongs to a batch, whose rows were written before.
        let groups = groups.into_iter().filter_map(|id| Some(Write::Group(id, self.groups.get(&id)?.clone())));
        change.writes.extend(groups);
        let steps = std::mem::take(&mut self.dirty_steps);
        change.writes.extend(steps.into_iter().filter_map(|s| Some(Write::Step(s, self.steps.get(&s)?.clone()))));
        if self.counters != self.counters_before {
            self.counters_before = self.counters.clone();
            change.writes.push(Write::Counters(self.counters.clone()));
        }
        change
    }

    /// Takes a trajectory of this process in, whatever has become of its seat.
    pub fn ingest(&mut self, trajectory: Trajectory) -> Ingested {
        self.ingest_from(None, trajectory)
    }

    /// Takes a trajectory in that `sender` has sent, as far as the link proves who that was.
    pub fn ingest_from(&mut self, sender: Option<&str>, trajectory: Trajectory) -> Ingested {
        let (seat, worker) = (trajectory.seat, trajectory.worker.clone());
        let result = match self.believe(sender, &trajectory) {
            Err(refused) => refused,
            Ok(()) => {
                self.issues.heard();
                if is_eval(seat.group) { self.ingest_eval(trajectory) } else { self.ingest_train(trajectory) }
            }
        };
        match &result {
            Ingested::Taken => self.counters.trajectories += 1,
            Ingested::Duplicate => self.count_refused("duplicate"),
            Ingested::Redrawn(_) => self.count_refused("no_score"),
            Ingested::Refused(refusal, reason) => {
                self.count_refused(refusal.label());
                let reason = reason.clone();
                if *refusal == Refusal::Rows {
                    self.strike(sender, &worker, &reason);
                }
                self.change.events.push(ReplayEvent::TrajectoryRefused { seat, worker, reason });
            }
        }
        self.advance();
        result
    }

    /// Counts a message that is no trajectory, and a strike against whoever is proven to have sent it.
    pub fn refuse_unreadable(&mut self, sender: Option<&str>, reason: &str) {
        self.count_refused(Refusal::Unreadable.label());
        if let Some(worker) = sender {
            self.strike(sender, worker, reason);
        }
    }

    fn ingest_train(&mut self, trajectory: Trajectory) -> Ingested {
        let key = trajectory.seat;
        let unknown = |what: String| Ingested::Refused(Refusal::UnknownSeat, what);
        let Some(group) = self.groups.get(&key.group) else {
            let late = key.group.0 < self.counters.next_group;
            return if late { Ingested::Duplicate } else { unknown(format!("group {} was never opened", key.group)) };
        };
        let Some(seat) = group.seats.get(key.sample as usize) else {
            return unknown(format!("group {} has {} seats", key.group, group.seats.len()));
        };
        if key.draw > seat.draw {
            return unknown(format!("seat {key}: draw {} is the one awaited", seat.draw));
        }
        if key.draw < seat.draw || seat.filled.is_some() {
            return Ingested::Duplicate;
        }
        if trajectory.purpose != Purpose::Train {
            return Ingested::Refused(Refusal::Purpose, format!("seat {key} is for training"));
        }
        if trajectory.task_id != group.task.id {
            let reason = format!("seat {key}: expected task {:?}, got {:?}", group.task.id, trajectory.task_id);
            return Ingested::Refused(Refusal::Task, reason);
        }
        if let Err(reason) = Self::check_source(seat, &trajectory) {
            return Ingested::Refused(Refusal::Rows, format!("seat {key}: {reason}"));
        }
        let step = group.step;
        let made_by = trajectory.policies();
        if let Err(reason) = self.believable(step, &made_by) {
            // Its maker was late or had another line's policy. Somebody shall have the seat soon.
            self.issues.release(&key);
            return Ingested::Refused(Refusal::Policy, format!("seat {key}: {reason}"));
        }
        let total = match &trajectory.outcome {
            Outcome::Scored { total, .. } => Some(*total),
            Outcome::Unjudged { .. } => None,
            Outcome::Unscorable { reason } | Outcome::Error { reason } => {
                let (end, reason) = (unscored(&trajectory), reason.clone());
                self.redraw(key, end, &reason);
                return Ingested::Redrawn(reason);
            }
        };
        if let Err((refusal, reason)) = check_content(&trajectory, self.settings.vocab_size, self.settings.judge_groups)
        {
            let end = if refusal == Refusal::Reward { DrawEnd::Reward } else { DrawEnd::Rows };
            self.redraw(key, end, &reason);
            return Ingested::Refused(refusal, format!("seat {key}: {reason}"));
        }
        let (worker, source, fingerprint) = (trajectory.worker.clone(), trajectory.source(), trajectory.fingerprint());
        let filled = Filled { total, policies: made_by, worker, source, fingerprint };
        self.fill(key, filled, trajectory);
        Ingested::Taken
    }

    fn fill(&mut self, key: SeatKey, filled: Filled, trajectory: Trajectory) {
        self.issues.settle(&key);
        self.change.events.push(ReplayEvent::SeatClosed { seat: key, reward: filled.total });
        self.change.writes.push(Write::Trajectory(Box::new(trajectory)));
        self.dirty_groups.insert(key.group);
        let Some(group) = self.groups.get_mut(&key.group) else { return };
        self.counters.filled += u64::from(filled.total.is_some());
        group.seats[key.sample as usize].filled = Some(filled);
        if group.is_closed() {
            let (step, rewards) = (group.step, rewards(group));
            self.close_group(key.group, step, &rewards);
        } else if group.open_seats() == 0 && !group.is_unjudged() {
            // Only a run that was forced to go on with another reward has such groups.
            self.drop_group(key.group, "two_rewards", "some of its members were scored, and others not".into());
        }
    }

    pub(super) fn close_group(&mut self, id: GroupId, step: u64, rewards: &[f64]) {
        self.counters.closed_groups += 1;
        let mean_reward = rewards.iter().sum::<f64>() / rewards.len() as f64;
        self.change.events.push(ReplayEvent::GroupClosed { group: id, step, mean_reward });
        // A group of one has no spread to speak of, and is kept (as verl does).
        let equal = rewards.len() > 1 && rewards.iter().all(|r| *r == rewards[0]);
        if self.settings.drop_equal_rewards && equal {
            self.drop_group(id, EQUAL_REWARDS, format!("all {} rewards are {}", rewards.len(), rewards[0]));
        }
    }

    /// The draw of `key` did not do: awaits the next one, or drops the group whole.
    pub(super) fn redraw(&mut self, key: SeatKey, end: DrawEnd, reason: &str) {
        self.issues.settle(&key);
        let Some(group) = self.groups.get_mut(&key.group) else { return };
        let step = group.step;
        let seat = &mut group.seats[key.sample as usize];
        seat.rejected.push(end);
        *self.counters.rejected.entry(end.label().to_owned()).or_default() += 1;
        if seat.draw + 1 >= self.settings.max_draws {
            let reason = format!("seat {key}: {} draws gave no score, the last one: {reason}", seat.draw + 1);
            self.step_mut(step).unscored += 1;
            self.drop_group(key.group, "no_score", reason);
            return;
        }
        seat.draw += 1;
        let seat = SeatKey { draw: seat.draw, ..key };
        self.counters.refills += 1;
        self.counters.redrawn += 1;
        self.dirty_groups.insert(key.group);
        self.change.events.push(ReplayEvent::SeatRefilled { seat, reason: reason.to_owned() });
    }

    pub(super) fn drop_group(&mut self, id: GroupId, label: &str, reason: String) {
        let Some(group) = self.groups.remove(&id) else { return };
        self.issues.settle_groups(|group| group == id);
        self.change.writes.push(Write::RemoveGroup(id));
        self.end_group(id, &group, Fate::Dropped(label.to_owned()));
        *self.counters.dropped_groups.entry(label.to_owned()).or_default() += 1;
        let row = self.step_mut(group.step);
        row.left_out += 1;
        row.last_drop = Some(reason.clone());
        self.change.events.push(ReplayEvent::GroupDropped { group: id, step: group.step, reason });
    }

    /// Notes what became of a group; exactly once for each.
    pub(super) fn end_group(&mut self, id: GroupId, group: &GroupRow, fate: Fate) {
        self.note_visit(id, group, &fate);
        self.counters.ended_groups += 1;
        self.change.writes.push(Write::GroupEnd(id, GroupEnd::of(group, fate)));
    }

    /// Opens what may be open and forms the batches that are complete.
    pub(super) fn advance(&mut self) {
        let next = self.counters.committed_step + 1;
        for step in next..=self.last_open_step() {
            if self.steps.get(&step).is_none_or(|row| row.batch.is_none()) {
                self.advance_step(step);
            }
        }
    }

    fn advance_step(&mut self, step: u64) {
        loop {
            let live: Vec<GroupId> = self.groups_of(step).collect();
            let wanted = self.settings.num_prompts as usize;
            let opened = self.steps.get(&step).map_or(0, |row| row.opened);
            if live.len() < wanted && opened < self.settings.groups_max() {
                if !self.has_room() {
                    return;
                }
                self.open_group(step);
            } else if live.iter().any(|id| !self.groups[id].is_closed() || self.is_ahead(*id)) {
                return;
            } else if !self.drop_stale(step, &live) {
                self.form_batch(step, live);
                return;
            }
        }
    }

    /// True if a token of the group comes from a policy beyond the last commit: after a resume to before it, nobody can say
    /// yet whether the same policy will come out again.
    fn is_ahead(&self, id: GroupId) -> bool {
        let filled = self.groups[&id].seats.iter().filter_map(|seat| seat.filled.as_ref());
        filled.flat_map(|filled| &filled.policies).any(|policy| policy.step > self.counters.committed_step)
    }

    fn open_group(&mut self, step: u64) {
        let replayed = self.replayed(step);
        if replayed.is_none() {
            self.pass_over(step);
        }
        let id = GroupId(self.counters.next_group);
        let (task, seats) = self.new_group(id, replayed);
        self.note_pool();
        self.counters.next_group += 1;
        self.groups.insert(id, GroupRow { step, task, seats });
        self.dirty_groups.insert(id);
        self.step_mut(step).opened += 1;
    }

    /// Back-pressure: whether the seats of another group may wait, too.
    fn has_room(&self) -> bool {
        let open: usize = self.groups.values().map(GroupRow::open_seats).sum();
        open == 0 || open + self.settings.num_generations as usize <= self.settings.max_open_seats as usize
    }

    /// Staleness is judged here, when a batch is about to form. True if a group was dropped.
    fn drop_stale(&mut self, step: u64, live: &[GroupId]) -> bool {
        let mut dropped = false;
        for id in live {
            let filled = self.groups[id].seats.iter().filter_map(|seat| seat.filled.as_ref());
            let stale = filled.map(|f| self.acceptable(step, &f.policies)).find_map(Result::err);
            if let Some(reason) = stale {
                self.drop_group(*id, "stale", reason);
                dropped = true;
            }
        }
        dropped
    }

    fn form_batch(&mut self, step: u64, live: Vec<GroupId>) {
        if live.is_empty() && self.settings.on_empty_batch == OnEmptyBatch::Stop {
            return;
        }
        let taken = live.iter().filter_map(|id| Some((*id, self.groups.remove(id)?)));
        let taken: Vec<(GroupId, GroupRow)> = taken.collect();
        self.gain_experience(step, &taken);
        for (id, group) in taken {
            // Written now: once the step has its batch, its groups are no longer held here.
            self.end_group(id, &group, Fate::Batch);
            self.change.writes.push(Write::Group(id, group));
        }
        let row = self.step_mut(step);
        let left_out = row.left_out;
        row.batch = Some(live.clone());
        self.change.events.push(ReplayEvent::BatchReady { step, groups: live.len() as u32, left_out });
    }

    /// As [`Self::acceptable`], for what comes in: its policies are also such as this run has committed to.
    fn believable(&self, step: u64, made_by: &[PolicyId]) -> Result<(), String> {
        let committed = self.counters.committed_step;
        match made_by.iter().find(|policy| policy.step > committed) {
            Some(policy) => {
                Err(format!("made by policy {policy}, which is not published: step {committed} is the last"))
            }
            None => self.acceptable(step, made_by),
        }
    }

    /// Checks whether tokens of `made_by` may be trained on in `step`; the error says why not.
    fn acceptable(&self, step: u64, made_by: &[PolicyId]) -> Result<(), String> {
        let (oldest, newest) = (self.settings.oldest_policy(step), step - 1);
        for policy in made_by {
            if policy.step < oldest {
                return Err(format!("made by policy {policy}; step {step} takes policies from step {oldest} on"));
            }
            if policy.step > newest {
                return Err(format!("made by policy {policy}, which comes after step {step}"));
            }
            if let Some(known) = self.policies.get(&policy.step).filter(|known| !same_weights(known, policy)) {
                return Err(format!("made by policy {policy}; this run's policy is {known}"));
            }
        }
        Ok(())
    }

    /// Whether the batch of `step` can be read from the record.
    ///
    /// # Errors
    /// If it will never come: it is forgotten, or nothing is left to train on. The text is for the user.
    pub fn has_batch(&self, step: u64) -> Result<bool, String> {
        if step == 0 || step <= self.counters.forgotten_step {
            let forgotten = self.counters.forgotten_step;
            return Err(format!("step {step} has no batch: steps begin at 1, those up to {forgotten} are forgotten"));
        }
        let Some(row) = self.steps.get(&step) else { return Ok(false) };
        if self.exhausted(step) {
            let reason = row.last_drop.as_deref().unwrap_or("unknown");
            return Err(format!(
                "step {step}: all of {} groups were left out, the last one because {reason}: look at the reward and at the \
                 difficulty of the tasks",
                row.opened
            ));
        }
        Ok(row.batch.is_some())
    }

    /// What `step` waits for, in words.
    pub fn why_not_yet(&self, step: u64) -> String {
        let next = self.counters.committed_step + 1;
        if !self.steps.contains_key(&step) {
            return format!("step {step} is not open yet: step {next} comes first");
        }
        let (closed, open): (Vec<_>, Vec<_>) = self.groups_of(step).partition(|id| self.groups[id].is_closed());
        let seats: usize = open.iter().map(|id| self.groups[id].open_seats()).sum();
        let wanted = self.settings.num_prompts;
        let unjudged = self.groups_of(step).filter(|id| self.groups[id].is_unjudged()).count();
        let unjudged = if unjudged == 0 { String::new() } else { format!("; {unjudged} groups wait to be judged") };
        let errors: u64 = self.groups_of(step).map(|id| self.groups[&id].draws().errors).sum();
        let failed = if errors == 0 { String::new() } else { format!("; the reward failed on {errors} draws") };
        let row = &self.steps[&step];
        let left_out = match &row.last_drop {
            Some(reason) => format!("; {} groups were left out, the last one because {reason}", row.left_out),
            None => String::new(),
        };
        format!(
            "step {step} has {} of {wanted} groups; {seats} seats of {} groups wait{unjudged}{failed}{left_out}",
            closed.len(),
            open.len()
        )
    }

    /// The counters, for whoever asks.
    pub fn status(&self) -> ReplayStatus {
        ReplayStatus {
            open_step: self.gathered_steps().next().unwrap_or(self.counters.committed_step + 1),
            committed_step: self.counters.committed_step,
            open_groups: self.groups.values().filter(|g| !g.is_closed()).count() as u64,
            open_seats: self.groups.values().map(GroupRow::open_seats).sum::<usize>() as u64 + self.open_eval_seats(),
            unjudged_groups: self.unjudged().count() as u64,
            trajectories: self.counters.trajectories,
            refused: self.counters.refused.clone().into_iter().collect(),
            draws: self.counters.draws(),
            rejected: self.counters.rejected.clone().into_iter().collect(),
            closed_groups: self.counters.closed_groups,
            dropped_groups: self.counters.dropped_groups.values().sum::<u64>() - self.passed_over(),
            passed_over: self.passed_over(),
            strikes: self.counters.strikes.clone().into_iter().collect(),
            quarantined: self.counters.quarantined.iter().cloned().collect(),
            experience: self.pool.as_ref().map(|pool| {
                let (questions, past, retired) = pool.sizes();
                ExperienceStatus { from_step: self.counters.experience_from, questions, past, retired }
            }),
            difficulty: self.difficulty.as_ref().map(|difficulty| {
                let [none, some, all] = difficulty.counts();
                DifficultyStatus { none, some, all }
            }),
        }
    }

    /// The furthest step that may be gathered now.
    pub(super) fn last_open_step(&self) -> u64 {
        self.counters.committed_step + 1 + u64::from(self.settings.max_staleness)
    }

    pub(super) fn exhausted(&self, step: u64) -> bool {
        let row = self.steps.get(&step);
        row.is_some_and(|row| row.batch.is_none() && row.opened >= self.settings.groups_max())
            && self.groups_of(step).next().is_none()
    }

    pub(super) fn gathered_steps(&self) -> impl Iterator<Item = u64> + '_ {
        self.steps.iter().filter(|(_, row)| row.batch.is_none()).map(|(step, _)| *step)
    }

    pub(super) fn groups_of(&self, step: u64) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.iter().filter(move |(_, group)| group.step == step).map(|(id, _)| *id)
    }

    pub(super) fn step_mut(&mut self, step: u64) -> &mut StepRow {
        self.dirty_steps.insert(step);
        self.steps.entry(step).or_default()
    }

    fn count_refused(&mut self, label: &str) {
        *self.counters.refused.entry(label.to_owned()).or_default() += 1;
    }
}

/// What ends a draw without a score. An episode that could not be played has no rows.
fn unscored(trajectory: &Trajectory) -> DrawEnd {
    match &trajectory.outcome {
        _ if trajectory.rows.is_empty() => DrawEnd::Unplayed,
        Outcome::Unscorable { .. } => DrawEnd::Unscorable,
        _ => DrawEnd::RewardError,
    }
}

/// The scores of a closed group.
pub(super) fn rewards(group: &GroupRow) -> Vec<f64> {
    group.seats.iter().filter_map(|seat| seat.filled.as_ref()?.total).collect()
}
