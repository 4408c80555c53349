//! Questions that are put off because none or all of their last group succeeded: by the stated rule, whoever comes first, through
//! restarts, and with groups of equal rewards left out.

use std::collections::BTreeMap;

use folgore_config::data::{Curriculum, CurriculumMode};
use folgore_learner::{
    record::evidence::Fate,
    replay::{ReplaySettings, Store, curriculum::QUESTIONS_MAX, tasks::task_index},
};
use folgore_protocol::{Batch, GroupId, Outcome, RolloutJob, Task, Trajectory, seed};

use crate::common::*;

const QUESTIONS: u64 = 7;
const REVISIT: u64 = 3;

fn curriculum(max_staleness: u32, drop_equal_rewards: bool) -> ReplaySettings {
    let curriculum = Curriculum { mode: CurriculumMode::Difficulty, revisit_steps: REVISIT, ..Curriculum::default() };
    ReplaySettings {
        num_prompts: 2,
        max_staleness,
        drop_equal_rewards,
        // one step after the other, so that no step is left without groups
        max_generation_batches: 20,
        curriculum: Some(curriculum),
        ..settings()
    }
}

/// Question 0 is never solved and question 1 always; of the others one of two samples succeeds.
fn successes(task: &str) -> u32 {
    match task {
        "train-0" => 0,
        "train-1" => 2,
        _ => 1,
    }
}

fn solve(job: &RolloutJob) -> Trajectory {
    let mut trajectory = play(job, policy_for(job), CALM);
    let right = job.seat.sample < successes(&job.task.id);
    trajectory.outcome = Outcome::scored("exact", f64::from(right));
    trajectory
}

/// Trains `steps`; `between` may put another store in the place of the one that is there.
fn train(store: &mut Store, steps: std::ops::RangeInclusive<u64>, mut between: impl FnMut(&mut Store)) -> Vec<Batch> {
    let one = |step| {
        loop {
            let jobs = store.open_seats(0, 1000, true).unwrap().0;
            if jobs.is_empty() {
                break;
            }
            for job in jobs {
                change(store, |ledger| ledger.ingest(solve(&job)));
                between(store);
            }
        }
        let batch = store.batch(step).unwrap().unwrap_or_else(|| panic!("no batch {step}"));
        change(store, |ledger| ledger.commit(step, policy(step))).unwrap();
        between(store);
        batch
    };
    steps.map(one).collect()
}

/// Which question each position asks.
fn question(id: GroupId) -> String {
    format!("train-{}", task_index(11, id.0, QUESTIONS))
}

/// Goes through all positions of a run and holds each to the rule, from nothing but what was asked and when.
fn held_to_the_rule(store: &mut Store, disk: &MemoryDisk, staleness: u64) -> BTreeMap<String, Vec<u64>> {
    let next = store.ledger().status();
    assert!(next.passed_over > 0, "nothing was put off");
    let evidence = folgore_learner::record::Record::on_backend(disk.crash(true)).unwrap().evidence().unwrap();
    let mut asked: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut in_a_row = 0;
    let all = evidence.ends.iter().map(|(id, end)| (id, end.step, end.fate == Fate::Dropped("put_off".into())));
    for (id, step, passed) in all {
        let name = question(*id);
        let visits = asked.entry(name.clone()).or_default();
        let last = visits.iter().rev().find(|seen| **seen + 1 + staleness <= step);
        let extreme = name == "train-0" || name == "train-1";
        let off = extreme && last.is_some_and(|last| step - last <= REVISIT);
        assert_eq!(passed, off && in_a_row < QUESTIONS, "{name} at {id} of step {step}, asked in {visits:?}");
        in_a_row = if passed { in_a_row + 1 } else { 0 };
        if !passed {
            asked.get_mut(&name).unwrap().push(step);
        }
    }
    asked
}

#[test]
fn what_none_or_all_have_solved_is_put_off_and_comes_back() {
    let disk = MemoryDisk::default();
    let mut store = open(curriculum(0, false), &disk);
    let batches = train(&mut store, 1..=24, |_| {});
    assert!(batches.iter().map(|batch| batch.passed_over).sum::<u32>() > 0);
    let asked = held_to_the_rule(&mut store, &disk, 0);
    for name in ["train-0", "train-1"] {
        let (steps, others) = (&asked[name], asked["train-2"].len());
        assert!(steps.len() > 2 && steps.len() < others, "{name} in {steps:?}, train-2 {others} times");
        assert!(steps.windows(2).all(|pair| pair[1] - pair[0] > REVISIT), "{name}: {steps:?}");
    }
    let status = store.ledger().status();
    let difficulty = status.difficulty.unwrap();
    assert_eq!((difficulty.none, difficulty.some, difficulty.all), (1, 5, 1));
    assert_eq!(status.dropped_groups, 0, "passed over is not dropped");
    let report = store.check().unwrap();
    assert!(report.holds(), "{report}");
}

#[test]
fn groups_of_equal_rewards_are_left_out_and_remembered() {
    let disk = MemoryDisk::default();
    let mut store = open(curriculum(0, true), &disk);
    let batches = train(&mut store, 1..=24, |_| {});
    let trained = |name: &str| batches.iter().flat_map(|b| &b.groups).filter(|g| g.task.id == name).count();
    assert_eq!((trained("train-0"), trained("train-1")), (0, 0), "dynamic sampling leaves them out");
    let asked = held_to_the_rule(&mut store, &disk, 0);
    assert!(asked["train-0"].len() > 2, "they are tried all the same");
    let mut without = open(ReplaySettings { curriculum: None, ..curriculum(0, true) }, &MemoryDisk::default());
    train(&mut without, 1..=24, |_| {});
    let dropped = |store: &Store| store.ledger().status().dropped_groups;
    assert!(dropped(&store) < dropped(&without), "{} and {}", dropped(&store), dropped(&without));
    assert!(store.check().unwrap().holds());
}

#[test]
fn restarts_at_every_change_lead_to_the_same_batches() {
    for drop_equal in [false, true] {
        let settings = curriculum(0, drop_equal);
        let want = train(&mut open(settings.clone(), &MemoryDisk::default()), 1..=12, |_| {});
        let mut disk = MemoryDisk::default();
        let mut store = open(settings.clone(), &disk);
        let found = train(&mut store, 1..=12, |store| {
            disk = disk.crash(false);
            *store = open(settings.clone(), &disk);
        });
        assert_eq!(want, found, "groups of equal rewards left out: {drop_equal}");
        held_to_the_rule(&mut store, &disk, 0);
    }
}

#[test]
fn a_resume_from_before_asks_the_same() {
    let disk = MemoryDisk::default();
    let mut store = open(ReplaySettings { retention_steps: 100, ..curriculum(0, true) }, &disk);
    let first = train(&mut store, 1..=10, |_| {});
    change(&mut store, |ledger| ledger.resume(6, Some(policy(6)), 0, 0)).unwrap();
    for step in 7..=10 {
        assert_eq!(store.batch(step).unwrap().as_ref(), Some(&first[step as usize - 1]));
        change(&mut store, |ledger| ledger.commit(step, policy(step))).unwrap();
    }
    let again = train(&mut store, 11..=14, |_| {});
    let calm = train(&mut open(curriculum(0, true), &MemoryDisk::default()), 1..=14, |_| {});
    let ids = |batches: &[Batch]| -> Vec<GroupId> { batches.iter().flat_map(|b| &b.groups).map(|g| g.id).collect() };
    assert_eq!(ids(&calm[10..]), ids(&again));
    assert!(store.check().unwrap().holds());
}

#[test]
fn who_comes_first_changes_nothing_with_several_steps_open() {
    let run = |salt: u64| {
        let disk = MemoryDisk::default();
        let mut store = open(curriculum(2, false), &disk);
        let mut step = 1;
        while step <= 20 {
            // some of what is open, in an order of its own
            let mut jobs = store.open_seats(0, 1000, true).unwrap().0;
            seed::shuffle(seed::mix(&[salt, step, jobs.len() as u64]), &mut jobs);
            for job in jobs.iter().take(1 + seed::below(salt, step, 4) as usize) {
                let mut trajectory = solve(job);
                let newest = policy(step - 1);
                trajectory.rows[0].segments[1].policies =
                    folgore_protocol::RunLength::of(newest, trajectory.rows[0].segments[1].ids.len() as u32);
                change(&mut store, |ledger| ledger.ingest(trajectory));
            }
            if store.batch(step).unwrap().is_some() {
                change(&mut store, |ledger| ledger.commit(step, policy(step))).unwrap();
                step += 1;
            }
        }
        held_to_the_rule(&mut store, &disk, 2);
        let asked = |step| store.batch(step).unwrap().map(|b| b.groups.into_iter().map(|g| g.id).collect::<Vec<_>>());
        (18..=20).map(asked).collect::<Vec<_>>()
    };
    let first = run(1);
    assert!(first.iter().all(Option::is_some), "{first:?}");
    (2..8).for_each(|salt| assert_eq!(run(salt), first, "order {salt}"));
}

#[test]
fn what_can_never_be_asked_twice_is_refused() {
    struct Endless;
    impl folgore_learner::replay::TaskSource for Endless {
        fn len(&self) -> u64 {
            QUESTIONS_MAX + 1
        }
        fn task(&self, index: u64) -> Task {
            tasks(1, &index.to_string()).remove(0)
        }
    }
    let mut setup = setup(curriculum(0, false), &MemoryDisk::default());
    setup.train = std::sync::Arc::new(Endless);
    let error = Store::open(&setup).err().unwrap().to_string();
    assert!(error.contains("data.curriculum") && error.contains("data.max_rows"), "{error}");
}
