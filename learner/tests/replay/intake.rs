//! What is believed of a trajectory, and what becomes of the rest: refused, counted, never scored 0.

use folgore_learner::replay::ingest::{Ingested, Refusal};
use folgore_protocol::{Outcome, Part, Purpose, Trajectory};

use crate::common::*;

#[test]
fn the_first_trajectory_of_a_seat_counts_and_a_hundred_more_do_not() {
    let mut store = open(settings(), &MemoryDisk::default());
    let jobs = change(&mut store, |l| l.open_seats(0, 100, false));
    let first = play(&jobs[0], policy(0), CALM);
    assert_eq!(change(&mut store, |l| l.ingest(first.clone())), Ingested::Taken);
    let mut other = first;
    other.worker = "somebody else".into();
    for _ in 0..100 {
        assert_eq!(change(&mut store, |l| l.ingest(other.clone())), Ingested::Duplicate);
    }
    play_all_after(&mut store);
    assert_eq!(store.ledger().status().trajectories, 6);
    assert_eq!(store.ledger().status().refused, [("duplicate".to_owned(), 100)]);
    assert_eq!(store.batch(1).unwrap().unwrap().groups[0].members[0].worker, "fake");
    assert_eq!(change(&mut store, |l| l.ingest(other)), Ingested::Duplicate, "after the batch");
}

fn play_all_after(store: &mut folgore_learner::replay::Store) {
    change(store, |l| l.open_seats(0, 0, true));
    play_all(store, CALM);
}

#[test]
fn what_is_wrong_is_named_and_counted() {
    type Spoil = fn(&mut Trajectory);
    let cases: [(Spoil, Refusal, bool); 11] = [
        (|t| t.task_id = "another".into(), Refusal::Task, false),
        (|t| t.purpose = Purpose::Eval { label: "x".into(), policy: policy(0) }, Refusal::Purpose, false),
        (|t| made_by(t, 1), Refusal::Policy, false),
        (|t| t.rows.clear(), Refusal::Rows, true),
        (|t| t.rows[0].segments[1].logprobs[0] = f32::NAN, Refusal::Rows, true),
        (|t| t.rows[0].segments[1].logprobs[0] = 0.5, Refusal::Rows, true),
        (|t| t.rows[0].segments[1].ids[0] = VOCAB, Refusal::Rows, true),
        (|t| reward(t, f64::NAN), Refusal::Reward, true),
        (|t| reward(t, f64::INFINITY), Refusal::Reward, true),
        (|t| reward(t, 1e308), Refusal::Reward, true),
        (|t| part(t, f64::NAN), Refusal::Reward, true),
    ];
    for (i, (spoil, expected, redrawn)) in cases.into_iter().enumerate() {
        let mut store = open(settings(), &MemoryDisk::default());
        let jobs = change(&mut store, |l| l.open_seats(0, 1, false));
        let mut bad = play(&jobs[0], policy(0), CALM);
        spoil(&mut bad);
        match change(&mut store, |l| l.ingest(bad)) {
            Ingested::Refused(refusal, _) => assert_eq!(refusal, expected, "case {i}"),
            other => panic!("case {i}: {other:?}"),
        }
        assert_eq!(store.ledger().status().refused, [(expected.label().to_owned(), 1)], "case {i}");
        let good = change(&mut store, |l| l.ingest(play(&jobs[0], policy(0), CALM)));
        let wanted = if redrawn { Ingested::Duplicate } else { Ingested::Taken };
        assert_eq!(good, wanted, "case {i}: what a bad one does to its seat");
        play_all_after(&mut store);
        let batch = store.batch(1).unwrap().unwrap_or_else(|| panic!("case {i}: no batch"));
        assert!(batch.groups.iter().flat_map(|g| g.rewards()).all(|r| r.is_some_and(f64::is_finite)), "case {i}");
    }
}

fn made_by(t: &mut Trajectory, step: u64) {
    let n = t.rows[0].segments[1].ids.len() as u32;
    t.rows[0].segments[1].policies = folgore_protocol::RunLength::of(policy(step), n);
}

fn reward(t: &mut Trajectory, total: f64) {
    t.outcome = Outcome::Scored { total, parts: vec![], answer: None };
}

fn part(t: &mut Trajectory, value: f64) {
    t.outcome =
        Outcome::Scored { total: 1.0, parts: vec![Part { name: "p".into(), value, weight: 1.0 }], answer: None };
}

#[test]
fn a_negative_reward_is_a_reward() {
    let mut store = open(settings(), &MemoryDisk::default());
    let jobs = change(&mut store, |l| l.open_seats(0, 1, false));
    let mut penalised = play(&jobs[0], policy(0), CALM);
    reward(&mut penalised, -0.5);
    assert_eq!(change(&mut store, |l| l.ingest(penalised)), Ingested::Taken);
}

#[test]
fn an_episode_that_could_not_be_played_comes_without_rows_and_is_drawn_again() {
    let mut store = open(settings(), &MemoryDisk::default());
    let jobs = change(&mut store, |l| l.open_seats(0, 1, false));
    let mut unplayed = play(&jobs[0], policy(0), CALM);
    unplayed.rows.clear();
    unplayed.outcome = Outcome::Error { reason: "the prompt is longer than the context".into() };
    let redrawn = change(&mut store, |l| l.ingest(unplayed));
    assert!(matches!(&redrawn, Ingested::Redrawn(reason) if reason.contains("longer than the context")), "{redrawn:?}");
    assert_eq!(change(&mut store, |l| l.open_seats(0, 1, false))[0].seat.draw, 1);
}
