//! Who is believed: forged messages burn nobody's draw, and a worker that hands in nonsense is kept out.

use folgore_learner::replay::{
    Ledger, ReplayEvent, ReplaySettings, Store,
    ingest::{Ingested, Refusal},
};
use folgore_protocol::{Purpose, RolloutJob, Trajectory};

use crate::common::*;

fn hand_out(store: &mut Store, max: usize) -> Vec<RolloutJob> {
    change(store, |l| l.open_seats(0, max, false))
}

/// What `worker` makes of `job`.
fn by(worker: &str, job: &RolloutJob) -> Trajectory {
    Trajectory { worker: worker.into(), ..play(job, policy_for(job), CALM) }
}

/// The same, as no sampler makes it.
fn nonsense_by(worker: &str, job: &RolloutJob) -> Trajectory {
    let mut trajectory = by(worker, job);
    trajectory.rows[0].segments[1].logprobs[0] = f32::NAN;
    trajectory
}

fn refusal(ingested: Ingested) -> Refusal {
    match ingested {
        Ingested::Refused(refusal, _) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_forged_message_neither_fills_a_seat_nor_burns_its_draw() {
    let mut store = open(settings(), &MemoryDisk::default());
    let jobs = hand_out(&mut store, 2);
    let cases: [(Refusal, fn(&mut Trajectory, &RolloutJob)); 5] = [
        (Refusal::WrongToken, |t, _| t.token.clear()),
        (Refusal::WrongToken, |t, other| t.token.clone_from(&other.token)),
        (Refusal::WrongToken, |t, _| {
            t.token = "0".repeat(32);
            t.rows[0].segments[1].logprobs[0] = f32::NAN;
        }),
        (Refusal::WrongToken, |t, _| t.seat.draw = 1),
        (Refusal::ForgedSender, |t, _| t.worker = "good".into()),
    ];
    for (expected, forge) in cases {
        let mut forged = by("rogue", &jobs[0]);
        forge(&mut forged, &jobs[1]);
        assert_eq!(refusal(change(&mut store, |l| l.ingest_from(Some("rogue"), forged))), expected);
    }
    let good = by("good", &jobs[0]);
    assert_eq!(change(&mut store, |l| l.ingest_from(Some("good"), good)), Ingested::Taken);
    let status = store.ledger().status();
    assert_eq!(status.refused, [("forged_sender".to_owned(), 1), ("wrong_token".to_owned(), 4)]);
    assert_eq!(status.strikes, [("rogue".to_owned(), 1)], "a wrong token is no strike");
}

#[test]
fn a_token_is_of_its_seat_and_of_its_record() {
    let disk = MemoryDisk::default();
    let mut store = open(settings(), &disk);
    let first = hand_out(&mut store, 6);
    let tokens: std::collections::BTreeSet<String> = first.iter().map(|job| job.token.clone()).collect();
    assert!(tokens.len() == 6 && tokens.iter().all(|t| t.len() == 32), "{tokens:?}");
    drop(store);
    let mut store = open(settings(), &disk.crash(false));
    assert_eq!(hand_out(&mut store, 6), first, "the same again after a restart");
    let mut afresh = open(settings(), &MemoryDisk::default());
    assert!(hand_out(&mut afresh, 6).iter().all(|job| !tokens.contains(&job.token)));
    let late = by("w", &first[0]);
    assert_eq!(refusal(change(&mut afresh, |l| l.ingest_from(Some("w"), late))), Refusal::WrongToken);
    assert!(afresh.ledger().status().strikes.is_empty(), "an honest worker of a lost record is struck");
}

#[test]
fn a_seat_that_the_record_lost_is_unknown() {
    let disk = MemoryDisk::default();
    let mut store = open(settings(), &disk);
    let before = disk.crash(false);
    play_all(&mut store, CALM);
    change(&mut store, |l| l.commit(1, policy(1))).unwrap();
    let jobs = hand_out(&mut store, 1);
    let mut older = open(settings(), &before);
    assert_eq!(refusal(change(&mut older, |l| l.ingest(by("w", &jobs[0])))), Refusal::UnknownSeat);
}

#[test]
fn three_strikes_quarantine_and_void_what_no_batch_has() {
    let mut store = open(settings(), &MemoryDisk::default());
    let jobs = hand_out(&mut store, 6);
    for job in &jobs[..2] {
        assert_eq!(change(&mut store, |l| l.ingest_from(Some("rogue"), by("rogue", job))), Ingested::Taken);
    }
    let (_, mut events) = store.change(|l| l.refuse_unreadable(Some("rogue"), "not MessagePack")).unwrap();
    for job in &jobs[2..4] {
        let (ingested, told) = store.change(|l| l.ingest_from(Some("rogue"), nonsense_by("rogue", job))).unwrap();
        assert_eq!(refusal(ingested), Refusal::Rows);
        events.extend(told);
    }
    let voided = events.iter().find_map(|event| match event {
        ReplayEvent::WorkerQuarantined { worker, voided } => Some((worker.as_str(), *voided)),
        _ => None,
    });
    assert_eq!(voided, Some(("rogue", 2)), "{events:?}");
    assert_eq!(
        refusal(change(&mut store, |l| l.ingest_from(Some("rogue"), by("rogue", &jobs[5])))),
        Refusal::Quarantined
    );
    let again = hand_out(&mut store, 10);
    let seats: Vec<(u64, u32, u32)> = again.iter().map(|j| (j.seat.group.0, j.seat.sample, j.seat.draw)).collect();
    assert_eq!(seats, [(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1), (2, 1, 0)], "its seats are open at once");
    for job in again.iter().chain([&jobs[4]]) {
        change(&mut store, |l| l.ingest_from(Some("good"), by("good", job)));
    }
    let batch = store.batch(1).unwrap().unwrap();
    assert!(batch.groups.iter().flat_map(|g| &g.members).all(|m| m.worker == "good"));
    let status = store.ledger().status();
    assert_eq!((status.quarantined, status.strikes), (vec!["rogue".to_owned()], vec![("rogue".to_owned(), 3)]));
    let report = store.check().unwrap();
    assert!(report.holds() && report.to_string().contains("void 2"), "{report}");
}

#[test]
fn a_quarantine_outlives_a_restart_and_its_limit_is_a_setting() {
    for (max_strikes, nonsense, kept_out) in [(3, 3, true), (3, 2, false), (0, 3, false)] {
        let disk = MemoryDisk::default();
        let settings = ReplaySettings { max_strikes, ..settings() };
        let mut store = open(settings.clone(), &disk);
        for job in hand_out(&mut store, nonsense) {
            change(&mut store, |l| l.ingest_from(Some("rogue"), nonsense_by("rogue", &job)));
        }
        drop(store);
        let mut store = open(settings, &disk.crash(false));
        let job = hand_out(&mut store, 6).pop().unwrap();
        let ingested = change(&mut store, |l| l.ingest_from(Some("rogue"), by("rogue", &job)));
        assert_eq!(ingested != Ingested::Taken, kept_out, "{max_strikes} {nonsense}");
    }
}

#[test]
fn in_one_process_nonsense_drops_groups_and_keeps_nobody_out() {
    let mut store = open(settings(), &MemoryDisk::default());
    for _ in 0..9 {
        let job = hand_out(&mut store, 1).remove(0);
        assert_eq!(refusal(change(&mut store, |l| l.ingest(nonsense_by("rollout-0", &job)))), Refusal::Rows);
    }
    let status = store.ledger().status();
    assert_eq!(
        (status.strikes, status.quarantined, status.dropped_groups),
        (vec![("rollout-0".to_owned(), 9)], vec![], 3)
    );
}

#[test]
fn a_policy_that_was_never_published_is_refused_and_its_seat_is_open_at_once() {
    let mut store = open(ReplaySettings { max_staleness: 2, max_issues: 9, ..settings() }, &MemoryDisk::default());
    change(&mut store, |l: &mut Ledger| l.resume(0, Some(policy(0)), 0, 0)).unwrap();
    let third = hand_out(&mut store, 100).into_iter().find(|job| job.seat.group.0 == 6).unwrap();
    for made_by in [policy(1), policy(2), folgore_protocol::PolicyId { digest: policy(9).digest, ..policy(0) }] {
        let forged = Trajectory { token: third.token.clone(), ..play(&third, made_by, CALM) };
        assert_eq!(refusal(change(&mut store, |l| l.ingest(forged))), Refusal::Policy, "{made_by}");
        assert_eq!(hand_out(&mut store, 100), std::slice::from_ref(&third));
    }
    assert_eq!(change(&mut store, |l| l.ingest(by("w", &third))), Ingested::Taken);
}

#[test]
fn a_seat_that_only_the_quarantined_answer_is_drawn_again_after_a_while() {
    let mut store = open(settings(), &MemoryDisk::default());
    (0..3).for_each(|_| change(&mut store, |l| l.refuse_unreadable(Some("rogue"), "nonsense")));
    let first = hand_out(&mut store, 1).remove(0);
    for _ in 1..settings().max_issues {
        change(&mut store, |l| l.ingest_from(Some("rogue"), by("rogue", &first)));
        assert_eq!(hand_out(&mut store, 1), std::slice::from_ref(&first));
    }
    change(&mut store, |l| l.ingest_from(Some("rogue"), by("rogue", &first)));
    let next = hand_out(&mut store, 1).remove(0).seat;
    assert_eq!((next.group, next.sample, next.draw), (first.seat.group, 0, 1));
}

#[test]
fn a_head_takes_the_epoch_that_it_was_given_or_a_later_one() {
    let mut store = open(settings(), &MemoryDisk::default());
    for (min_epoch, given) in [(0, 1), (7, 7), (3, 8)] {
        assert_eq!(change(&mut store, |l| l.resume(0, None, 0, min_epoch)).unwrap().0, given);
    }
}

#[test]
fn evaluations_are_guarded_too() {
    let mut store = open(settings(), &MemoryDisk::default());
    change(&mut store, |l| l.open_eval("before", policy(0), true, 1, 0..5)).unwrap();
    let jobs = hand_out(&mut store, 5);
    assert!(jobs.iter().all(|job| matches!(job.purpose, Purpose::Eval { .. })));
    let forged = Trajectory { token: jobs[1].token.clone(), ..by("rogue", &jobs[0]) };
    assert_eq!(refusal(change(&mut store, |l| l.ingest_from(Some("rogue"), forged))), Refusal::WrongToken);
    for job in &jobs[..3] {
        change(&mut store, |l| l.ingest_from(Some("rogue"), nonsense_by("rogue", job)));
    }
    assert_eq!(
        refusal(change(&mut store, |l| l.ingest_from(Some("rogue"), by("rogue", &jobs[3])))),
        Refusal::Quarantined
    );
    assert_eq!(change(&mut store, |l| l.ingest_from(Some("good"), by("good", &jobs[3]))), Ingested::Taken);
}
