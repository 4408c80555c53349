//! Groups with an expert's traces and with the policy's own successes: who is given what, what comes back, and what a crash leaves.

use std::{collections::BTreeSet, sync::Arc};

use folgore_config::replay::Experience;
use folgore_learner::replay::{
    ReplaySettings, ReplaySetup, Store, TaskSource,
    ingest::{Ingested, Refusal},
    settings::Traces,
};
use folgore_protocol::{Given, Outcome, RolloutJob, RunLength, Source, Task, Trajectory, seed};

use crate::common::*;

/// Tasks of which the even ones have two traces.
struct Taught(Vec<Task>);

impl TaskSource for Taught {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn task(&self, index: u64) -> Task {
        self.0[index as usize].clone()
    }

    fn traces(&self, index: u64) -> Vec<Vec<String>> {
        let trace = |name: &str| vec![format!("{name} {index}")];
        if index.is_multiple_of(2) { vec![trace("first"), trace("second")] } else { Vec::new() }
    }
}

fn open_taught(settings: ReplaySettings, disk: &MemoryDisk, questions: u64) -> Store {
    let train = Arc::new(Taught(tasks(questions, "train")));
    Store::open(&ReplaySetup { train, ..setup(settings, disk) }).unwrap()
}

fn traced() -> ReplaySettings {
    let traces = Traces { per_group: 3, min_reward: Some(1.0), prefix_ratio: (0.5, 1.0) };
    ReplaySettings { num_generations: 5, traces: Some(traces), ..settings() }
}

/// What a worker makes of a trace.
fn followed(job: &RolloutJob) -> Trajectory {
    let mut trajectory = play(job, policy_for(job), CALM);
    let row = &mut trajectory.rows[0];
    row.source = Source::Teacher;
    row.segments[1].logprobs.clear();
    row.segments[1].policies = RunLength::default();
    trajectory
}

#[test]
fn questions_with_traces_have_them_in_their_groups_and_others_have_not() {
    let disk = MemoryDisk::default();
    let mut store = open_taught(traced(), &disk, 7);
    let mut seen = BTreeSet::new();
    play_all_by(&mut store, |job| {
        let even = job.task.id.ends_with(['0', '2', '4', '6']);
        let given = job.given.clone();
        assert_eq!(given.is_some(), even && job.seat.sample < 3, "{}", job.seat);
        let Some(Given::Trace { turns, share, min_reward }) = given else { return play(job, policy_for(job), CALM) };
        let expert = ["first", "second", "first"][job.seat.sample as usize];
        assert_eq!(turns, [format!("{expert} {}", job.task.id.trim_start_matches("train-"))]);
        assert!((0.5..=1.0).contains(&share) && min_reward == Some(1.0));
        seen.insert((share * 1e6) as u64);
        followed(job)
    });
    assert!(seen.len() > 3, "each seat draws its own share");
    let batch = store.batch(1).unwrap().unwrap();
    let sources: Vec<Source> = batch.groups.iter().flat_map(|g| &g.members).map(Trajectory::source).collect();
    assert_eq!(sources.iter().filter(|source| **source == Source::Teacher).count(), seen.len());
    change(&mut store, |ledger| ledger.commit(1, policy(1))).unwrap();
    assert!(store.check().unwrap().holds(), "{:?}", store.check().unwrap());
}

#[test]
fn nobody_may_say_that_his_tokens_are_anothers() {
    let mut store = open_taught(traced(), &MemoryDisk::default(), 7);
    let jobs = store.open_seats(0, 1000, false).unwrap().0;
    let (given, own): (Vec<_>, Vec<_>) = jobs.iter().partition(|job| job.given.is_some());
    let refused = |ingested| matches!(ingested, Ingested::Refused(Refusal::Rows, _));
    assert!(refused(change(&mut store, |ledger| ledger.ingest(followed(own[0])))));
    let mut replayed = play(given[0], policy_for(given[0]), CALM);
    replayed.rows[0].source = Source::Replay;
    assert!(refused(change(&mut store, |ledger| ledger.ingest(replayed))));
    // whoever cannot use a trace plays the seat himself
    let own = play(given[0], policy_for(given[0]), CALM);
    assert_eq!(change(&mut store, |ledger| ledger.ingest(own)), Ingested::Taken);
}

fn remembering(change: impl FnOnce(&mut Experience)) -> ReplaySettings {
    let mut experience = Experience { enabled: true, min_live_questions: 2, ..Experience::default() };
    change(&mut experience);
    ReplaySettings { num_prompts: 4, num_generations: 4, experience: Some(experience), ..settings() }
}

/// Plays a seat; whoever is given experience takes the first that he may choose from. Two of three succeed.
fn remembers(job: &RolloutJob) -> Trajectory {
    let mut trajectory = play(job, policy_for(job), CALM);
    if let Some(Given::Experience { past }) = &job.given {
        trajectory.rows = past[0].rows.clone();
        trajectory.rows.iter_mut().for_each(|row| row.source = Source::Replay);
    }
    let succeeds = job.given.is_some() || seed::below(job.seed, 400, 3) > 0;
    trajectory.outcome = Outcome::scored("fake", f64::from(u8::from(succeeds)));
    trajectory
}

/// Steps of such a run; asks after each for what is known.
fn run(store: &mut Store, steps: std::ops::RangeInclusive<u64>) -> Vec<folgore_protocol::Batch> {
    let one = |step| {
        play_all_by(store, remembers);
        let batch = store.batch(step).unwrap().unwrap();
        change(store, |ledger| ledger.commit(step, policy(step))).unwrap();
        batch
    };
    steps.map(one).collect()
}

#[test]
fn successes_are_replayed_as_they_were_sampled_once_enough_succeed() {
    let mut store = open(remembering(|_| ()), &MemoryDisk::default());
    let batches = run(&mut store, 1..=8);
    let members = |batch: &folgore_protocol::Batch| -> Vec<Trajectory> {
        batch.groups.iter().flat_map(|g| g.members.clone()).collect()
    };
    let mut sampled = Vec::new();
    let mut replayed = 0;
    for batch in &batches {
        let of_step = members(batch);
        let again: Vec<_> = of_step.iter().filter(|t| t.source() == Source::Replay).collect();
        assert!(batch.step > 2 || again.is_empty(), "the first step is the first success, and nothing is kept of it");
        assert!(again.len() <= 2, "half of the questions at most");
        for trajectory in &again {
            let before = &trajectory.rows[0].segments[1];
            assert!(sampled.contains(&(before.ids.clone(), before.logprobs.clone())), "ids and log-probs of then");
            assert_eq!(trajectory.seat.sample, 0);
            assert!(trajectory.policies().is_empty(), "older than any staleness would allow");
        }
        replayed += again.len();
        let fresh = of_step.iter().filter(|t| t.source() == Source::OnPolicy);
        sampled.extend(fresh.map(|t| (t.rows[0].segments[1].ids.clone(), t.rows[0].segments[1].logprobs.clone())));
    }
    assert!(replayed > 4, "{replayed}");
    let status = store.ledger().status().experience.unwrap();
    assert!(status.from_step == Some(2) && status.past > 0, "{status:?}");
    assert!(store.check().unwrap().holds());
}

#[test]
fn a_restart_changes_nothing_about_what_is_kept_and_replayed() {
    let settings = || remembering(|e| e.start_success_rate = 0.0);
    let calm = run(&mut open(settings(), &MemoryDisk::default()), 1..=6);
    let disk = MemoryDisk::default();
    let mut again = Vec::new();
    for step in 1..=6 {
        // every step by a process of its own
        again.extend(run(&mut open(settings(), &disk), step..=step));
    }
    let told = |batches: &[folgore_protocol::Batch]| -> Vec<_> {
        batches
            .iter()
            .flat_map(|b| b.groups.iter().map(|g| (g.id, g.task.id.clone(), g.members[0].rows.clone())))
            .collect()
    };
    assert_eq!(told(&again), told(&calm));
}

#[test]
fn what_all_of_a_group_solved_is_not_asked_again_unless_too_few_are_left() {
    let settings = remembering(|e| (e.ratio, e.min_live_questions) = (0.0, 3));
    let mut store = open(settings, &MemoryDisk::default());
    let mut solved = BTreeSet::new();
    for step in 1..=12 {
        play_all_by(&mut store, |job| {
            let retired = solved.len().min(4);
            assert!(solved.len() < 4 && !solved.contains(&job.task.id) || retired == 4, "{} was solved", job.task.id);
            let mut trajectory = play(job, policy_for(job), CALM);
            trajectory.outcome = Outcome::scored("fake", 1.0);
            trajectory
        });
        let batch = store.batch(step).unwrap().unwrap();
        change(&mut store, |ledger| ledger.commit(step, policy(step))).unwrap();
        solved.extend(batch.groups.iter().map(|g| g.task.id.clone()));
    }
    let status = store.ledger().status().experience.unwrap();
    assert_eq!((status.retired, status.questions), (4, 0), "three of seven are left");
}
