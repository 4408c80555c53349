//! Whatever ends, sleeps or lies, nothing is lost: a run over a real server, in real processes, disturbed in every way.
//!
//! After each of them the run has done all its steps, and its record proves that every seat ended once, that no batch was
//! trained twice and that versions only grew. Where samples may not lag behind, its numbers are those of a run in one process
//! that nobody disturbed, bit for bit. `tests/chaos/run.sh` does it all with longer outages.

#[path = "chaos/fleet.rs"]
mod fleet;
#[path = "chaos/moment.rs"]
mod moment;
#[path = "chaos/rogue.rs"]
mod rogue;
mod support;
#[path = "chaos/wire.rs"]
mod wire;

use std::{collections::BTreeSet, fs, path::Path, process::Command, thread::sleep, time::Duration};

use fleet::{Fleet, PATIENCE, RUN, STEPS, calm, proves, same_as_calm};
use folgore_protocol::seed::mix;
use moment::Moment;
use rogue::Rogue;
use support::{checkpoints, is_saving, raw_metrics, recorded};

/// A little more than it takes until a silent process is given up.
const GIVEN_UP: Duration = Duration::from_secs(PATIENCE + 2);

/// How long the server is away: `CHAOS_OUTAGE_S`, or shorter than a person would want to see.
fn outage() -> Duration {
    let named = std::env::var("CHAOS_OUTAGE_S").ok().map(|text| text.parse().expect("CHAOS_OUTAGE_S: whole seconds"));
    Duration::from_secs(named.unwrap_or(8))
}

fn share(random: u64) -> f64 {
    0.1 + 0.8 * (random >> 40) as f64 / (1u64 << 24) as f64
}

fn workers_are_killed(staleness: u32) {
    let mut fleet = Fleet::start(staleness);
    for kill in 0..2 {
        fleet.until_step(1 + 2 * kill);
        let workers: Vec<String> = fleet.workers.keys().cloned().collect();
        for try_at in 0.. {
            assert!(fleet.steps() < STEPS, "no worker was seen at work");
            workers.iter().for_each(|name| fleet.signal(name, "STOP"));
            // what those who stand still have in hand is what they are at
            if fleet.jobs_held() > 0 {
                break;
            }
            workers.iter().for_each(|name| fleet.signal(name, "CONT"));
            sleep(Duration::from_secs_f64(share(mix(&[u64::from(staleness), kill, try_at])) * calm().seconds[5].0));
        }
        workers.iter().for_each(|name| fleet.kill(name));
        for worker in 0..2 {
            fleet.join(&format!("w{}", 2 + 2 * kill + worker));
        }
    }
    fleet.completes("workers killed");
}

#[test]
fn workers_are_killed_while_they_generate() {
    workers_are_killed(0);
}

#[test]
fn workers_are_killed_while_they_run_ahead() {
    workers_are_killed(1);
}

/// Waits for the place in a step where `wanted` is likely; `random` says how far into it. Steps up to `known` may be done
/// again from the record, without samples. False if the run is over.
fn aim(fleet: &mut Fleet, wanted: Moment, random: u64, known: u64) -> bool {
    let run = fleet.run_dir();
    let newest = |run: &Path| checkpoints(run).into_iter().max().unwrap_or(0);
    let saved = newest(&run);
    let wire = fleet.wire.clone();
    let head = fleet.head();
    let (generating, learning) = calm().seconds[5];
    let (reached, pause) = match wanted {
        Moment::Generating | Moment::Other => {
            let reached = head.until(|| raw_metrics(&run).len() as u64 > known);
            // Over a server, a policy is on its way for longer than in one process: how much longer is for the machine to say.
            (reached, share(random) * generating * (1 + random % 6) as f64)
        }
        Moment::Learning => (head.until(|| in_training(&run) > known), 0.8 * share(random) * learning),
        Moment::CommittedNotAcked => {
            wire.stop_at_next();
            (head.until(|| wire.has_stopped()), 0.0)
        }
        Moment::Saving => (head.until(|| is_saving(&run)), 0.0),
        Moment::SavedNotCommitted => (head.until(|| newest(&run) > saved), 0.0),
        Moment::CommittedNotPublished => (head.until(|| newest(&run) > saved), share(random) * 0.02),
    };
    sleep(Duration::from_secs_f64(pause));
    reached && fleet.steps() < STEPS
}

/// The newest step that the logs of the run's heads say was begun to be trained; 0 before the first.
fn in_training(run: &Path) -> u64 {
    let begun = |line: &str| line.split_once(": training step=")?.1.split(' ').next()?.parse().ok();
    let attempts = fs::read_dir(run.join("logs")).into_iter().flatten().flatten();
    let logs = attempts.map(|attempt| fs::read_to_string(attempt.path().join("folgore.log")).unwrap_or_default());
    logs.filter_map(|log| log.lines().filter_map(begun).max()).max().unwrap_or(0)
}

/// Kills the head in each of the `wanted` moments; it goes on each time. A run that is over makes room for another one. The
/// head stands still while it is looked at: in another moment than one that is wanted, it goes on.
fn head_is_killed(staleness: u32, wanted: &[Moment]) {
    const RUNS: u64 = 6;
    let mut missing: BTreeSet<Moment> = wanted.iter().copied().collect();
    let mut seen = Vec::new();
    for attempt in 0..RUNS {
        let mut fleet = Fleet::start(staleness);
        fleet.until_step(2);
        let (mut known, mut hits, mut tries) = (2, Vec::new(), 0);
        while let Some(next) = missing.iter().nth(tries % missing.len().max(1)).copied() {
            if !aim(&mut fleet, next, mix(&[attempt, tries as u64]), known) {
                break;
            }
            tries += 1;
            fleet.head().signal("STOP");
            let moment = Moment::of(&fleet);
            // what the wire keeps back is lost to a head that goes on
            if !missing.remove(&moment) && next != Moment::CommittedNotAcked {
                seen.push(moment);
                fleet.head().signal("CONT");
                known = known.max(fleet.steps());
                continue;
            }
            fleet.head.take().expect("a head").kill();
            hits.push(moment);
            // The next step may have a batch already.
            known = known.max(fleet.steps() + 1);
            fleet.resume();
            assert!(fleet.head().until_it_says("resumed from step"), "the head did not go on after {hits:?}");
        }
        fleet.completes(&format!("killed at {hits:?}"));
        if missing.is_empty() {
            return;
        }
    }
    panic!("{missing:?} were not hit, but {seen:?}");
}

#[test]
fn the_head_is_killed_while_it_generates_and_learns() {
    head_is_killed(0, &[Moment::Generating, Moment::Learning]);
}

#[test]
fn the_head_is_killed_while_it_saves_and_publishes() {
    head_is_killed(0, &[Moment::Saving, Moment::SavedNotCommitted, Moment::CommittedNotPublished]);
}

#[test]
fn the_head_is_killed_while_it_takes_in_what_workers_made_ahead() {
    head_is_killed(1, &[Moment::CommittedNotAcked, Moment::Learning]);
}

#[test]
fn a_worker_sleeps_longer_than_its_jobs_wait() {
    let mut fleet = Fleet::start(0);
    fleet.until_generating(2, 0.3);
    fleet.signal("w0", "STOP");
    sleep(GIVEN_UP);
    fleet.signal("w0", "CONT");
    // It has the run for itself from here on, and so has to be well again.
    fleet.kill("w1");
    fleet.completes("a worker slept");
}

#[test]
fn the_head_sleeps_longer_than_its_lease() {
    for staleness in [0, 1] {
        let mut fleet = Fleet::start(staleness);
        fleet.until_generating(3, 0.5);
        fleet.head().signal("STOP");
        sleep(GIVEN_UP);
        fleet.head().signal("CONT");
        fleet.completes("the head slept");
    }
}

#[test]
fn a_head_that_slept_while_another_one_took_the_run_ends_and_harms_nothing() {
    let mut fleet = Fleet::start(0);
    fleet.until_generating(4, 0.5);
    // Nobody is to be done before the other one is there.
    ["w0", "w1"].iter().for_each(|name| fleet.signal(name, "STOP"));
    fleet.head().signal("STOP");
    let others = support::folder();
    let copied = Command::new("cp").arg("-r").arg(fleet.run_dir()).arg(others.path()).status().unwrap();
    assert!(copied.success());
    fleet.head().signal("CONT");
    // The first one is well: the second one waits, and says for whom.
    let pid = fleet.head().pid();
    let mut second = fleet.resumed(others.path());
    assert!(second.until_it_says("waiting: the run is held by head on"), "the second head ended");
    assert!(second.until_it_says(&format!("(process {pid})")));
    fleet.head().signal("STOP");
    let before = fleet.steps();
    assert!(before < STEPS, "the first head was done before the second one came");
    assert!(second.until_it_says("head of run c at"), "the second head did not take the run");
    ["w0", "w1"].iter().for_each(|name| fleet.signal(name, "CONT"));
    fleet.head().signal("CONT");
    let first = fleet.head.take().expect("a head").end();
    assert_eq!(first.status.code(), Some(1), "{}\n{}", first.stdout, first.stderr);
    assert!(first.stderr.contains("the lease was lost to head on"), "{}", first.stderr);
    assert!(first.stderr.contains(&format!("(process {})", second.pid())), "{}", first.stderr);
    second.end().well();
    proves(others.path(), "taken over");
    same_as_calm(&others.path().join(RUN), "taken over");
    let (steps, served) = (raw_metrics(&fleet.run_dir()).len() as u64, fleet.served());
    assert!(steps <= before + 1, "the first head did {} steps after it had lost the run", steps - before);
    assert_eq!(served, Some(STEPS), "the last word is the second head's");
}

fn server_is_away(staleness: u32, wiped: bool) {
    let mut fleet = Fleet::start(staleness);
    fleet.until_generating(4, 0.5);
    fleet.server.kill();
    sleep(if wiped { Duration::from_secs(1) } else { outage() });
    fleet.server.restart(wiped).unwrap();
    if wiped {
        // Again, as soon as it goes on: what was put back is lost once more.
        fleet.until_generating(7, 0.5);
        fleet.server.restart(true).unwrap();
    }
    fleet.completes("the server was away");
}

#[test]
fn the_server_is_away_for_a_while() {
    server_is_away(0, false);
}

#[test]
fn the_server_is_away_while_workers_run_ahead() {
    server_is_away(1, false);
}

#[test]
fn the_server_comes_back_with_empty_hands() {
    server_is_away(0, true);
}

#[test]
fn the_server_comes_back_with_empty_hands_while_workers_run_ahead() {
    server_is_away(1, true);
}

#[test]
fn messages_are_repeated_shuffled_and_forged() {
    let fleet = Fleet::start(0);
    let rogue = Rogue::start(&fleet);
    let run = fleet.run_dir();
    let _at = fleet.completes("forged messages");
    drop(rogue);
    let counters = recorded(&run).counters;
    for reason in ["duplicate", "wrong_token", "forged_sender", "unreadable"] {
        assert!(counters.refused.get(reason).is_some_and(|n| *n > 0), "{reason}: {:?}", counters.refused);
    }
    assert_eq!(counters.quarantined, BTreeSet::from(["rogue".to_owned()]), "{:?}", counters.strikes);
}

#[test]
fn a_worker_hands_in_what_no_sampler_makes() {
    let mut fleet = Fleet::without_workers(1);
    let rogue = Rogue::insider(&fleet);
    assert!(fleet.head().until(|| rogue.is_done()), "the head ended");
    fleet.join("w0");
    fleet.join("w1");
    let run = fleet.run_dir();
    let _at = fleet.completes_with_other_numbers("nonsense");
    let counters = recorded(&run).counters;
    assert_eq!(counters.quarantined, BTreeSet::from(["rogue".to_owned()]), "{:?}", counters.strikes);
    assert!(counters.refused.get("rows").is_some_and(|n| *n >= 3), "{:?}", counters.refused);
}
