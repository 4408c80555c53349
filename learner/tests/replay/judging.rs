//! Groups that are judged as a whole: what waits, what a verdict does, and what it may not do.

use folgore_learner::replay::{
    ReplaySettings, Store,
    ingest::{Ingested, Refusal},
};
use folgore_protocol::{GroupId, Outcome, RolloutJob, Trajectory, UNJUDGED_BYTES_MAX};

use crate::common::*;

fn wait(store: &Store) -> Vec<u64> {
    store.ledger().unjudged().map(|(id, _)| id.0).collect()
}

/// Hands in what is open, without scores.
fn fill(store: &mut Store) {
    for job in change(store, |l| l.open_seats(0, 100, false)) {
        change(store, |l| l.ingest(unjudged(play(&job, policy_for(&job), CALM))));
    }
}

/// A verdict on `group` in which `judge` says what becomes of each member.
fn judge(store: &mut Store, group: u64, judge: impl Fn(&Trajectory) -> Outcome) -> Vec<Ingested> {
    let mut members = store.members(GroupId(group)).unwrap();
    members.iter_mut().for_each(|member| member.outcome = judge(member));
    change(store, |l| l.judged(GroupId(group), members))
}

fn by_seat(member: &Trajectory) -> Outcome {
    Outcome::scored("rank", f64::from(member.seat.sample))
}

fn failed(_: &Trajectory) -> Outcome {
    Outcome::Error { reason: "the judge is out".into() }
}

fn proven(store: &Store) {
    let report = store.check().unwrap();
    assert!(report.holds(), "{report}");
}

#[test]
fn a_group_waits_for_its_verdict_also_after_a_crash() {
    let disk = MemoryDisk::default();
    let mut store = open(judged_settings(), &disk);
    fill(&mut store);
    assert_eq!((wait(&store), store.batch(1).unwrap()), (vec![0, 1, 2], None));
    assert!(change(&mut store, |l| l.open_seats(0, 100, true)).is_empty(), "no seat is open");
    let status = store.ledger().status();
    assert_eq!((status.unjudged_groups, status.open_seats, status.closed_groups, status.draws.scored), (3, 0, 0, 0));
    assert!(store.ledger().why_not_yet(1).contains("; 3 groups wait to be judged"));
    proven(&store);
    drop(store);

    let mut store = open(judged_settings(), &disk.crash(false));
    assert_eq!(wait(&store), [0, 1, 2]);
    let texts = store.members(GroupId(1)).unwrap();
    assert!(texts.iter().all(|m| matches!(&m.outcome, Outcome::Unjudged { completion, .. } if !completion.is_empty())));
    for group in 0..3 {
        assert_eq!(judge(&mut store, group, by_seat), [Ingested::Taken, Ingested::Taken]);
        proven(&store);
    }
    let batch = store.batch(1).unwrap().unwrap();
    let rewards: Vec<_> = batch.groups.iter().flat_map(|group| group.rewards()).collect();
    assert_eq!(rewards, [0.0, 1.0].map(Some).repeat(3));
    assert_eq!((batch.draws.scored, store.ledger().status().closed_groups), (6, 3));
    assert_eq!(judge(&mut store, 0, by_seat), [Ingested::Duplicate, Ingested::Duplicate], "it was judged");
}

#[test]
fn a_member_without_a_score_is_drawn_again_and_the_others_wait_with_it() {
    let mut store = open(judged_settings(), &MemoryDisk::default());
    fill(&mut store);
    let before = store.members(GroupId(1)).unwrap();
    let second_fails = |member: &Trajectory| match member.seat.sample {
        0 => by_seat(member),
        _ => Outcome::Unscorable { reason: "it says nothing".into() },
    };
    let ingested = judge(&mut store, 1, second_fails);
    assert_eq!(ingested, [Ingested::Duplicate, Ingested::Redrawn("it says nothing".into())]);
    assert_eq!((wait(&store), store.members(GroupId(1)).unwrap()), (vec![0, 2], before[..1].to_vec()));
    proven(&store);
    let again = change(&mut store, |l| l.open_seats(0, 100, false));
    assert_eq!(again.iter().map(|job| job.seat.to_string()).collect::<Vec<_>>(), ["g1.1.1"]);
    change(&mut store, |l| l.ingest(unjudged(play(&again[0], policy_for(&again[0]), CALM))));
    // A verdict on who was there before comes too late.
    let late = before.into_iter().map(|member| Trajectory { outcome: by_seat(&member), ..member }).collect();
    assert_eq!(change(&mut store, |l| l.judged(GroupId(1), late)), [Ingested::Duplicate, Ingested::Duplicate]);
    for group in 0..3 {
        judge(&mut store, group, by_seat);
    }
    let batch = store.batch(1).unwrap().unwrap();
    assert_eq!((batch.draws.unscorable, batch.draws.refilled, batch.draws.scored), (1, 1, 6));
    proven(&store);
}

#[test]
fn a_judge_that_fails_costs_the_group_and_no_zero_is_trained() {
    let mut store = open(judged_settings(), &MemoryDisk::default());
    while wait(&store) != [0, 2, 3] {
        fill(&mut store);
        judge(&mut store, 1, failed);
        proven(&store);
    }
    let status = store.ledger().status();
    assert_eq!((status.dropped_groups, status.closed_groups), (1, 0));
    // The first member's third failure ends the group: that of the second is left with it.
    assert_eq!(status.rejected, [("reward_error".to_owned(), 5)]);
    for group in [0, 2, 3] {
        judge(&mut store, group, by_seat);
    }
    let batch = store.batch(1).unwrap().unwrap();
    let ids: Vec<u64> = batch.groups.iter().map(|group| group.id.0).collect();
    assert_eq!((ids, batch.filtered_groups, batch.unscored_groups), (vec![0, 2, 3], 1, 1));
    proven(&store);
}

#[test]
fn numbers_that_are_none_are_no_verdict() {
    let mut store = open(judged_settings(), &MemoryDisk::default());
    fill(&mut store);
    judge(&mut store, 0, |_| Outcome::Scored { total: f64::NAN, parts: Vec::new(), answer: None });
    judge(&mut store, 1, |_| Outcome::Unjudged { completion: "me".into(), said: vec![] });
    let rejected = store.ledger().status().rejected;
    assert_eq!((wait(&store), rejected), (vec![2], vec![("reward".to_owned(), 2), ("reward_error".to_owned(), 2)]));
    proven(&store);
}

#[test]
fn what_comes_in_is_of_the_kind_that_the_run_is_of() {
    let refused = |settings: ReplaySettings, outcome: Outcome| {
        let mut store = open(settings, &MemoryDisk::default());
        let job = change(&mut store, |l| l.open_seats(0, 1, false)).remove(0);
        let made = Trajectory { outcome, ..play(&job, policy_for(&job), CALM) };
        match change(&mut store, |l| l.ingest(made)) {
            Ingested::Refused(refusal, reason) => (refusal, reason),
            other => panic!("{other:?}"),
        }
    };
    let text = |bytes| Outcome::Unjudged { completion: "x".repeat(bytes), said: vec![] };
    let (refusal, reason) = refused(judged_settings(), Outcome::scored("self", 1.0));
    assert!(refusal == Refusal::Reward && reason.contains("got a score"), "{reason}");
    let (refusal, reason) = refused(settings(), text(1));
    assert!(refusal == Refusal::Reward && reason.contains("expected a score"), "{reason}");
    assert_eq!(refused(judged_settings(), text(UNJUDGED_BYTES_MAX + 1)).0, Refusal::Rows);
}

/// A group that waits with a member by `rogue`, and what it is asked with; the jobs that are left.
fn waiting_on_a_rogue(store: &mut Store) -> (Vec<Trajectory>, Vec<RolloutJob>) {
    let mut jobs = change(store, |l| l.open_seats(0, 100, false));
    let left = jobs.split_off(3);
    for (job, worker) in jobs.iter().zip(["rogue", "good", "rogue"]) {
        let made = Trajectory { worker: worker.into(), ..unjudged(play(job, policy_for(job), CALM)) };
        assert_eq!(change(store, |l| l.ingest_from(Some(worker), made)), Ingested::Taken);
    }
    assert_eq!(wait(store), [0]);
    (store.members(GroupId(0)).unwrap(), left)
}

fn be_found_out(store: &mut Store, jobs: &[RolloutJob]) {
    for job in &jobs[..3] {
        let mut nonsense = Trajectory { worker: "rogue".into(), ..unjudged(play(job, policy_for(job), CALM)) };
        nonsense.rows[0].segments[1].logprobs[0] = f32::NAN;
        change(store, |l| l.ingest_from(Some("rogue"), nonsense));
    }
}

#[test]
fn what_a_quarantined_worker_made_costs_a_judged_group() {
    let mut store = open(judged_settings(), &MemoryDisk::default());
    let (asked, left) = waiting_on_a_rogue(&mut store);
    let verdict = asked.into_iter().map(|member| Trajectory { outcome: by_seat(&member), ..member }).collect();
    assert_eq!(change(&mut store, |l| l.judged(GroupId(0), verdict)), [Ingested::Taken, Ingested::Taken]);
    be_found_out(&mut store, &left);
    assert_eq!(store.ledger().status().dropped_groups, 1, "nobody new can be compared with the others");
    proven(&store);
}

#[test]
fn what_a_quarantined_worker_made_is_drawn_again_before_its_verdict() {
    let mut store = open(judged_settings(), &MemoryDisk::default());
    let (asked, left) = waiting_on_a_rogue(&mut store);
    be_found_out(&mut store, &left);
    assert_eq!((store.ledger().status().quarantined, wait(&store)), (vec!["rogue".to_owned()], vec![]));
    let verdict = asked.into_iter().map(|member| Trajectory { outcome: by_seat(&member), ..member }).collect();
    assert_eq!(change(&mut store, |l| l.judged(GroupId(0), verdict)), [Ingested::Duplicate, Ingested::Duplicate]);
    proven(&store);
}

/// `--force` may take a run on with another kind of reward.
#[test]
fn a_group_of_two_kinds_is_left_out_whole() {
    for (first, then) in [(settings(), judged_settings()), (judged_settings(), settings())] {
        let disk = MemoryDisk::default();
        let hand_in = |store: &mut Store, most, judged: bool| {
            for job in change(store, |l| l.open_seats(0, most, true)) {
                let made = play(&job, policy_for(&job), CALM);
                change(store, |l| l.ingest(if judged { unjudged(made) } else { made }));
            }
        };
        let judged = first.judge_groups;
        // One group and a half.
        hand_in(&mut open(first, &disk), 3, judged);
        let mut store = open(then, &disk);
        hand_in(&mut store, 3, !judged);
        assert_eq!(store.ledger().status().dropped_groups, 1);
        proven(&store);
    }
}
