//! Held-out questions on the same path, never in a batch.

use folgore_learner::replay::{Store, ingest::Ingested};
use folgore_protocol::{Outcome, Purpose};

use crate::common::*;

fn open_eval(store: &mut Store, label: &str, step: u64) {
    change(store, |l| l.open_eval(label, policy(step), false, 2, 1..4)).unwrap();
}

#[test]
fn an_evaluation_is_filled_first_and_survives_a_crash() {
    let disk = MemoryDisk::default();
    let mut store = open(settings(), &disk);
    open_eval(&mut store, "before", 0);
    open_eval(&mut store, "before", 0);
    let jobs = change(&mut store, |l| l.open_seats(0, 8, false));
    let evals: Vec<bool> = jobs.iter().map(|j| matches!(j.purpose, Purpose::Eval { .. })).collect();
    assert_eq!(evals, [true, true, true, true, true, true, false, false]);
    assert_eq!(jobs[2].task.id, "held-out-2");
    for job in &jobs[..4] {
        assert_eq!(change(&mut store, |l| l.ingest(play(job, policy_for(job), CALM))), Ingested::Taken);
        assert_eq!(change(&mut store, |l| l.ingest(play(job, policy_for(job), CALM))), Ingested::Duplicate);
    }
    drop(store);
    let mut store = open(settings(), &disk.crash(false));
    assert_eq!(store.ledger().eval_complete("before"), Some(false));
    assert_eq!(change(&mut store, |l| l.await_eval("before")), Some(false));
    play_all(&mut store, CALM);
    let summary = store.eval("before").unwrap().unwrap();
    assert!(summary.complete() && summary.expected == 6);
    let seats: Vec<_> = summary.items.iter().map(|i| i.seat).collect();
    assert!(seats.is_sorted());
    assert_eq!(store.batch(1).unwrap().unwrap().groups.len(), 3, "training went on beside it");
    assert_eq!(store.ledger().eval_complete("after"), None);
}

#[test]
fn an_evaluation_of_an_earlier_process_waits_until_it_is_asked_for_again() {
    let disk = MemoryDisk::default();
    let mut store = open(settings(), &disk);
    let policy_of = |epoch| folgore_protocol::PolicyId { epoch, ..policy(0) };
    let ask = |store: &mut Store, epoch| {
        change(store, |l| l.open_eval("before", policy_of(epoch), false, 2, 1..4)).unwrap();
    };
    let evals = |store: &mut Store| -> Vec<folgore_protocol::RolloutJob> {
        let jobs = change(store, |l| l.open_seats(0, 1000, true));
        jobs.into_iter().filter(|job| job.purpose != Purpose::Train).collect()
    };
    let (epoch, _) = change(&mut store, |l| l.resume(0, None, 0, 0)).unwrap();
    ask(&mut store, epoch);
    let first = evals(&mut store);
    assert_eq!(first.len(), 6);
    assert_eq!(change(&mut store, |l| l.ingest(play(&first[0], policy_of(epoch), CALM))), Ingested::Taken);
    // the process dies; whoever goes on serves its own policies, and before that none
    let mut store = open(settings(), &disk.crash(false));
    assert!(evals(&mut store).is_empty());
    let (later, _) = change(&mut store, |l| l.resume(0, None, 0, 0)).unwrap();
    assert!(later > epoch && evals(&mut store).is_empty());
    ask(&mut store, later);
    let again = evals(&mut store);
    assert_eq!(
        again.iter().map(|job| (job.seat, job.seed)).collect::<Vec<_>>(),
        first[1..].iter().map(|job| (job.seat, job.seed)).collect::<Vec<_>>()
    );
    let pinned = |job: &folgore_protocol::RolloutJob| matches!(job.purpose, Purpose::Eval { policy, .. } if policy.epoch == later);
    assert!(again.iter().all(pinned));
}

#[test]
fn two_evaluations_throw_the_same_dice() {
    let mut store = open(settings(), &MemoryDisk::default());
    let seeds = |store: &mut Store| -> Vec<u64> {
        let jobs = change(store, |l| l.open_seats(0, 1000, false));
        jobs.iter().filter(|j| j.purpose != Purpose::Train).map(|j| j.seed).collect()
    };
    open_eval(&mut store, "before", 0);
    let before = seeds(&mut store);
    open_eval(&mut store, "after", 0);
    assert_eq!(before, seeds(&mut store));
    change(&mut store, |l| l.open_eval("greedy", policy(0), true, 1, 0..1)).unwrap();
    let greedy = change(&mut store, |l| l.open_seats(0, 1000, false));
    assert_eq!((greedy.len(), greedy[0].sampling.temperature), (1, 0.0));
    assert!(!before.contains(&greedy[0].seed));
}

#[test]
fn a_failed_sample_shows_as_failed_after_its_draws() {
    let mut store = open(settings(), &MemoryDisk::default());
    open_eval(&mut store, "before", 0);
    play_all(&mut store, Temper { fails_one_in: 1, reward_max: 1 });
    let summary = store.eval("before").unwrap().unwrap();
    assert!(summary.complete());
    assert!(summary.items.iter().all(|i| !matches!(i.outcome, Outcome::Scored { .. }) && i.seat.draw == 2));
    assert_eq!(summary.mean_reward(), None);
}

#[test]
fn another_policy_or_seat_is_refused_and_another_policy_under_the_label_starts_anew() {
    let mut store = open(settings(), &MemoryDisk::default());
    open_eval(&mut store, "before", 0);
    let jobs = change(&mut store, |l| l.open_seats(0, 2, false));
    let refused = change(&mut store, |l| l.ingest(play(&jobs[0], policy(1), CALM)));
    assert!(matches!(refused, Ingested::Refused(..)), "{refused:?}");
    change(&mut store, |l| l.ingest(play(&jobs[0], policy(0), CALM)));
    assert_eq!(store.eval("before").unwrap().unwrap().items.len(), 1);
    open_eval(&mut store, "before", 1);
    assert_eq!(store.eval("before").unwrap().unwrap().items.len(), 0);
    assert_eq!(change(&mut store, |l| l.ingest(play(&jobs[1], policy(0), CALM))), Ingested::Duplicate);
    for (samples, tasks) in [(0, 0..1), (1, 0..6), (1, 2..2)] {
        let error = change(&mut store, |l| l.open_eval("bad", policy(0), true, samples, tasks)).unwrap_err();
        assert!(error.contains("within 0..5"), "{error}");
    }
}
