//! What makes a batch: refills, drops, dynamic sampling, staleness, back-pressure, resume and forgetting.

use folgore_config::replay::OnEmptyBatch;
use folgore_learner::replay::{ReplayError, ReplaySettings, RunIdentity, Store, ingest::Ingested};
use folgore_protocol::{Digest, Draws, GroupId, Outcome, PolicyId};

use crate::common::*;

fn rewards_of(groups: &[folgore_protocol::GroupRecord]) -> Vec<Vec<f64>> {
    groups.iter().map(|g| g.rewards().into_iter().map(|r| r.expect("scored")).collect()).collect()
}

#[test]
fn a_step_opens_its_groups_once_and_its_batch_is_whole() {
    let mut store = open(settings(), &MemoryDisk::default());
    let jobs = change(&mut store, |l| l.open_seats(0, 100, false));
    assert_eq!(jobs.len(), 6);
    assert!(change(&mut store, |l| l.open_seats(999, 100, false)).is_empty(), "handed out twice");
    assert_eq!(change(&mut store, |l| l.open_seats(1000, 100, false)).len(), 6, "due again");
    assert_eq!(change(&mut store, |l| l.open_seats(1000, 4, true)).len(), 4, "asked for again");
    let seeds: std::collections::BTreeSet<u64> = jobs.iter().map(|j| j.seed).collect();
    assert_eq!(seeds.len(), 6);
    assert_eq!(store.ledger().why_not_yet(1), "step 1 has 0 of 3 groups; 6 seats of 3 groups wait");
    assert!(change(&mut store, |l| l.commit(1, policy(1))).unwrap_err().contains("6 seats"));
    let batches = run_calmly_after_reissue(&mut store);
    let ids: Vec<u64> = batches.groups.iter().map(|g| g.id.0).collect();
    assert_eq!((ids, batches.filtered_groups), (vec![0, 1, 2], 0));
    let seats: Vec<u32> = batches.groups[1].members.iter().map(|m| m.seat.sample).collect();
    assert_eq!(seats, [0, 1]);
    let status = store.ledger().status();
    assert_eq!((status.committed_step, status.open_step, status.open_seats, status.trajectories), (1, 2, 6, 6));
}

fn run_calmly_after_reissue(store: &mut Store) -> folgore_protocol::Batch {
    for job in change(store, |l| l.open_seats(0, 100, true)) {
        change(store, |l| l.ingest(play(&job, policy_for(&job), CALM)));
    }
    let batch = store.batch(1).unwrap().unwrap();
    change(store, |l| l.commit(1, policy(1))).unwrap();
    batch
}

#[test]
fn a_failed_reward_draws_anew_and_then_drops_the_group_whole() {
    let mut store = open(settings(), &MemoryDisk::default());
    let mut failed = 0;
    loop {
        let jobs = change(&mut store, |l| l.open_seats(0, 100, false));
        if jobs.is_empty() {
            break;
        }
        for job in jobs {
            let mut trajectory = play(&job, policy_for(&job), CALM);
            if job.seat.group == GroupId(1) && job.seat.sample == 0 {
                trajectory.outcome = Outcome::Error { reason: "timed out".into() };
                assert_eq!(job.seat.draw, failed);
                failed += 1;
            }
            change(&mut store, |l| l.ingest(trajectory));
        }
    }
    let batch = store.batch(1).unwrap().unwrap();
    let ids: Vec<u64> = batch.groups.iter().map(|g| g.id.0).collect();
    assert_eq!((failed, ids, batch.filtered_groups), (3, vec![0, 2, 3], 1));
    let status = store.ledger().status();
    assert_eq!(status.refused, [("no_score".to_owned(), 3)]);
    assert_eq!(status.dropped_groups, 1);
    assert_eq!((status.rejected, status.draws.refilled), (vec![("reward_error".to_owned(), 3)], 2));
    assert_eq!(status.draws.error_share(), Some(3.0 / (3 + status.draws.scored) as f64));
    assert_eq!((batch.unscored_groups, batch.draws.errors, batch.draws.scored), (1, 0, 6));
}

#[test]
fn draws_without_a_score_are_told_apart_by_what_ended_them() {
    let disk = MemoryDisk::default();
    let mut store = open(settings(), &disk);
    let jobs = change(&mut store, |l| l.open_seats(0, 100, false));
    for (job, fault) in jobs.iter().zip(0..) {
        let mut trajectory = play(job, policy_for(job), CALM);
        match fault {
            0 => trajectory.outcome = Outcome::Unscorable { reason: "no gold answer".into() },
            1 => {
                trajectory.outcome = Outcome::Error { reason: "the engine is gone".into() };
                trajectory.rows.clear();
            }
            2 => trajectory.outcome = Outcome::Error { reason: "crashed".into() },
            3 => trajectory.outcome = Outcome::Scored { total: f64::INFINITY, parts: Vec::new(), answer: None },
            _ => {}
        }
        change(&mut store, |l| l.ingest(trajectory));
    }
    let status = store.ledger().status();
    let counted = |label: &str| status.rejected.iter().find(|(name, _)| name == label).map(|(_, n)| *n);
    for label in ["unscorable", "unplayed", "reward_error", "reward"] {
        assert_eq!(counted(label), Some(1), "{label} of {:?}", status.rejected);
    }
    let draws = Draws { scored: jobs.len() as u64 - 4, errors: 2, unscorable: 1, unplayed: 1, refilled: 4 };
    assert_eq!(status.draws, draws);
    assert!(store.check().unwrap().holds());
}

#[test]
fn dynamic_sampling_keeps_spread_and_fills_up() {
    let settings = ReplaySettings { drop_equal_rewards: true, ..settings() };
    let temper = Temper { fails_one_in: 0, reward_max: 1 };
    let batches = run_calmly(&mut open(settings, &MemoryDisk::default()), 1..=6, temper);
    assert!(batches.iter().all(|b| b.groups.len() == 3));
    assert!(batches.iter().flat_map(|b| rewards_of(&b.groups)).all(|r| r[0] != r[1]));
    assert!(batches.iter().map(|b| b.filtered_groups).sum::<u32>() > 0, "the test filters nothing");
}

#[test]
fn a_step_without_spread_is_told_or_skipped_and_a_resume_tries_again() {
    let equal = Temper { fails_one_in: 0, reward_max: 0 };
    let stop = ReplaySettings { drop_equal_rewards: true, max_generation_batches: 2, ..settings() };
    let mut store = open(stop.clone(), &MemoryDisk::default());
    play_all(&mut store, equal);
    let error = store.ledger().has_batch(1).unwrap_err();
    assert!(error.contains("all of 6 groups") && error.contains("all 2 rewards are 0"), "{error}");
    change(&mut store, |l| l.resume(0, None, 0, 0)).unwrap();
    assert_eq!(store.ledger().has_batch(1), Ok(false));
    play_all(&mut store, CALM);
    assert_eq!(store.batch(1).unwrap().unwrap().groups.len(), 3);

    let skip = ReplaySettings { on_empty_batch: OnEmptyBatch::Skip, ..stop };
    let mut store = open(skip, &MemoryDisk::default());
    play_all(&mut store, equal);
    let batch = store.batch(1).unwrap().unwrap();
    assert_eq!((batch.groups.len(), batch.filtered_groups), (0, 6));
}

#[test]
fn what_is_left_at_the_limit_makes_a_smaller_batch() {
    let settings = ReplaySettings { drop_equal_rewards: true, max_generation_batches: 1, ..settings() };
    let mut store = open(settings, &MemoryDisk::default());
    for job in change(&mut store, |l| l.open_seats(0, 100, false)) {
        let mut trajectory = play(&job, policy_for(&job), CALM);
        let reward = if job.seat.group == GroupId(2) { f64::from(job.seat.sample) } else { 1.0 };
        trajectory.outcome = Outcome::scored("fake", reward);
        change(&mut store, |l| l.ingest(trajectory));
    }
    let batch = store.batch(1).unwrap().unwrap();
    assert_eq!((batch.groups.len(), batch.groups[0].id, batch.filtered_groups), (1, GroupId(2), 2));
}

#[test]
fn overlapped_steps_take_tokens_as_old_as_allowed() {
    let settings = ReplaySettings { max_staleness: 1, ..settings() };
    let mut store = open(settings, &MemoryDisk::default());
    let jobs = change(&mut store, |l| l.open_seats(0, 100, false));
    let least: Vec<u64> = jobs.iter().map(|j| j.min_policy_step).collect();
    assert_eq!((jobs.len(), least), (12, vec![0; 12]), "steps 1 and 2 are open, both from policy 0 on");
    for job in &jobs {
        assert_eq!(change(&mut store, |l| l.ingest(play(job, policy(0), CALM))), Ingested::Taken);
    }
    assert!(store.batch(1).unwrap().is_some() && store.batch(2).unwrap().is_some());
    change(&mut store, |l| l.commit(1, policy(1))).unwrap();
    let jobs = change(&mut store, |l| l.open_seats(0, 100, false));
    assert!(jobs.iter().all(|j| j.min_policy_step == 1));
    let refused = change(&mut store, |l| l.ingest(play(&jobs[0], policy(0), CALM)));
    assert!(matches!(&refused, Ingested::Refused(_, reason) if reason.contains("from step 1 on")), "{refused:?}");
}

#[test]
fn tokens_of_a_policy_that_was_made_otherwise_after_a_resume_are_stale() {
    let settings = ReplaySettings { max_staleness: 1, ..settings() };
    let mut store = open(settings, &MemoryDisk::default());
    play_all(&mut store, CALM);
    change(&mut store, |l| l.commit(1, policy(1))).unwrap();
    let jobs = change(&mut store, |l| l.open_seats(0, 100, false));
    assert_eq!(jobs.len(), 6);
    for job in &jobs[..5] {
        change(&mut store, |l| l.ingest(play(job, policy(1), CALM)));
    }
    let (epoch, recorded) = change(&mut store, |l| l.resume(0, Some(policy(0)), 0, 0)).unwrap();
    assert_eq!((epoch, recorded), (1, 2));
    let other = PolicyId { digest: Digest::of(b"other"), ..policy(1) };
    change(&mut store, |l| l.commit(1, other)).unwrap();
    let refused = change(&mut store, |l| l.ingest(play(&jobs[5], policy(1), CALM)));
    assert!(matches!(refused, Ingested::Refused(..)), "{refused:?}");
    assert_eq!(change(&mut store, |l| l.ingest(play(&jobs[5], other, CALM))), Ingested::Taken);
    assert_eq!(store.batch(3).unwrap(), None, "stale groups made a batch");
    assert_eq!(store.ledger().status().dropped_groups, 3);
    let fresh = change(&mut store, |l| l.open_seats(0, 100, false));
    fresh.iter().for_each(|job| drop(change(&mut store, |l| l.ingest(play(job, other, CALM)))));
    assert_eq!(store.batch(3).unwrap().unwrap().groups[0].id, GroupId(9));
}

#[test]
fn open_seats_are_bounded_and_a_silent_seat_is_given_up() {
    let settings = ReplaySettings { max_open_seats: 4, ..settings() };
    let mut store = open(settings, &MemoryDisk::default());
    let jobs = change(&mut store, |l| l.open_seats(0, 100, false));
    assert_eq!(jobs.len(), 4);
    jobs[..2].iter().for_each(|job| drop(change(&mut store, |l| l.ingest(play(job, policy_for(job), CALM)))));
    assert_eq!(
        change(&mut store, |l| l.open_seats(0, 100, false)).len(),
        2,
        "the third group opens when the first closed"
    );
    for round in 1..=2 {
        assert_eq!(change(&mut store, |l| l.open_seats(round * 1000, 100, false)).len(), 4);
    }
    let drawn = change(&mut store, |l| l.open_seats(3000, 100, false));
    assert!(drawn.iter().all(|job| job.seat.draw == 1), "{drawn:?}");
}

#[test]
fn a_long_queue_is_not_made_longer_while_samples_come_in() {
    let mut store = open(settings(), &MemoryDisk::default());
    let jobs = change(&mut store, |l| l.open_seats(0, 100, false));
    for (i, job) in jobs[..3].iter().enumerate() {
        change(&mut store, |l| l.ingest(play(job, policy_for(job), CALM)));
        let now_ms = 900 * (i as u64 + 1);
        assert!(change(&mut store, |l| l.open_seats(now_ms, 100, false)).is_empty(), "at {now_ms}");
    }
    assert_eq!(change(&mut store, |l| l.open_seats(3699, 100, false)).len(), 0);
    assert_eq!(change(&mut store, |l| l.open_seats(3700, 100, false)).len(), 3, "a second after the last sample");
}

#[test]
fn a_lower_epoch_cannot_commit_and_a_repeated_commit_is_fine() {
    let mut store = open(settings(), &MemoryDisk::default());
    let (epoch, _) = change(&mut store, |l| l.resume(0, None, 0, 0)).unwrap();
    play_all(&mut store, CALM);
    let fenced = PolicyId { epoch: epoch - 1, ..policy(1) };
    assert!(change(&mut store, |l| l.commit(1, fenced)).unwrap_err().contains("epoch 0 is over"));
    let mine = PolicyId { epoch, ..policy(1) };
    for _ in 0..2 {
        change(&mut store, |l| l.commit(1, mine)).unwrap();
    }
    let other = PolicyId { digest: Digest::of(b"other"), ..mine };
    assert!(change(&mut store, |l| l.commit(1, other)).unwrap_err().contains("resume first"));
    assert!(change(&mut store, |l| l.commit(3, PolicyId { step: 3, ..mine })).is_err());
}

#[test]
fn forgotten_batches_are_gone_and_the_rest_is_served_again() {
    let disk = MemoryDisk::default();
    let mut store = open(settings(), &disk);
    let first = change(&mut store, |l| l.open_seats(0, 1, false)).remove(0);
    change(&mut store, |l| l.open_seats(0, 0, true));
    let batches = run_calmly(&mut store, 1..=5, CALM);
    assert_eq!(change(&mut store, |l| l.forget(3)), [1, 2, 3]);
    drop(store);
    let mut store = open(settings(), &disk);
    assert!(store.ledger().has_batch(3).unwrap_err().contains("up to 3 are forgotten"));
    assert_eq!(store.batch(3).unwrap(), None);
    let error = change(&mut store, |l| l.resume(2, None, 0, 0)).unwrap_err();
    assert!(error.contains("forgotten the batches up to step 3"), "{error}");
    assert_eq!(change(&mut store, |l| l.resume(3, Some(policy(3)), 0, 0)).unwrap().1, 5);
    for step in 4..=5 {
        assert_eq!(store.batch(step).unwrap().unwrap(), batches[step as usize - 1]);
        change(&mut store, |l| l.commit(step, policy(step))).unwrap();
    }
    let late = change(&mut store, |l| l.ingest(play(&first, policy(0), CALM)));
    assert_eq!(late, Ingested::Duplicate);
}

#[test]
fn a_run_with_another_identity_is_refused_unless_forced() {
    let disk = MemoryDisk::default();
    drop(open(settings(), &disk));
    let mut other = setup(settings(), &disk);
    other.identity = RunIdentity::new().with("seed", 12);
    match Store::open(&other).map(drop) {
        Err(error @ ReplayError::Identity(_)) => {
            assert!(error.to_string().contains("seed: began with 11, now 12"), "{error}")
        }
        opened => panic!("{opened:?}"),
    }
    other.force = true;
    drop(Store::open(&other).unwrap());
    other.force = false;
    drop(Store::open(&other).unwrap());
}

#[test]
fn a_lost_record_does_not_repeat_groups_that_a_checkpoint_has_trained_on() {
    let mut store = open(settings(), &MemoryDisk::default());
    change(&mut store, |l| l.resume(2, Some(policy(2)), 6, 0)).unwrap();
    let jobs = change(&mut store, |l| l.open_seats(0, 100, false));
    assert_eq!((jobs[0].seat.group, jobs[0].min_policy_step), (GroupId(6), 2));
}

#[test]
fn no_tasks_and_impossible_settings_are_refused_in_words() {
    let mut empty = setup(settings(), &MemoryDisk::default());
    empty.train = std::sync::Arc::new(tasks(0, "train"));
    assert!(Store::open(&empty).err().unwrap().to_string().contains("training set is empty"));
    let none = setup(ReplaySettings { num_prompts: 0, ..settings() }, &MemoryDisk::default());
    assert!(Store::open(&none).err().unwrap().to_string().contains("num_prompts"));
}
