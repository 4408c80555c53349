//! A run in virtual time: the real coordinator, replay and rollout workers over faulty links, and everything that can happen
//! to them, drawn from a seed. Whatever happened, the record must prove that nothing was lost, trained twice or made up.
//!
//! A seed that fails is printed. `FOLGORE_SIM_SEED=<seed> cargo test --release --test simulation -- --nocapture` plays it
//! again and tells what happened; `FOLGORE_SIM_SCHEDULES` sets how many are tried.

#[path = "simulation/dice.rs"]
mod dice;
#[path = "simulation/learner.rs"]
mod learner;
#[path = "simulation/net.rs"]
mod net;
#[path = "simulation/people.rs"]
mod people;
#[path = "simulation/world.rs"]
mod world;

use std::{
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::time::Instant;
use world::Ended;

/// Threads that play schedules side by side; each schedule has one.
const THREADS: usize = 2;
const SCHEDULES: u64 = 1000;
/// Lines of a failed schedule that are shown.
const SHOWN: usize = 60;

/// What happened, with virtual times.
#[derive(Clone)]
pub struct Log {
    text: Arc<Mutex<String>>,
    began: Instant,
}

impl Log {
    fn new(text: Arc<Mutex<String>>) -> Self {
        Self { text, began: Instant::now() }
    }

    /// Notes one thing.
    pub fn say(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9.3} s  {what}\n", self.began.elapsed().as_secs_f64());
        self.text.lock().unwrap().push_str(&line);
    }
}

/// Plays the schedule of `seed`; the error says what does not hold.
fn play(seed: u64) -> Result<Ended, String> {
    let text = Arc::new(Mutex::new(String::new()));
    let told = text.clone();
    let played = catch_unwind(AssertUnwindSafe(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async { world::schedule(seed, Log::new(told)).await })
    }));
    let text = text.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let failed = match played {
        Ok(Ok(ended)) => return Ok(ended),
        Ok(Err(reason)) => reason,
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".into()),
    };
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
    let again = format!("FOLGORE_SIM_SEED={seed} cargo test --release --test simulation -- --nocapture");
    Err(format!("seed {seed}: {failed}\n{last}\nplay it again with: {again}"))
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

#[test]
fn a_thousand_schedules_hold_the_invariants() {
    if let Some(seed) = setting("FOLGORE_SIM_SEED") {
        let ended = play(seed).unwrap_or_else(|failed| panic!("{failed}"));
        println!("{}\n{}", ended.log, ended.report);
        return;
    }
    let (schedules, next) = (setting("FOLGORE_SIM_SCHEDULES").unwrap_or(SCHEDULES), AtomicU64::new(0));
    let (failed, seen) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::<String, u64>::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(seed) = Some(next.fetch_add(1, Relaxed)).filter(|seed| *seed < schedules) {
                    match play(seed) {
                        Ok(ended) => {
                            let mut seen = seen.lock().unwrap();
                            ended.seen.into_iter().for_each(|(what, times)| *seen.entry(what).or_default() += times);
                        }
                        Err(reason) => failed.lock().unwrap().push((seed, reason)),
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    let seeds: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
    assert!(failed.is_empty(), "{} of {schedules} schedules failed {seeds:?}\n{}", failed.len(), failed[0].1);
    let seen = seen.into_inner().unwrap();
    println!("{seen:#?}");
    // A simulation in which nothing happens holds every invariant.
    for what in [
        "head killed",
        "network cut",
        "replay killed",
        "worker killed",
        "queues wiped",
        "steps cut",
        "duplicate",
        "no_score",
        "rows",
        "policy",
        "forged_sender",
        "wrong_token",
        "quarantined",
        "unreadable",
        "equal_rewards",
        "voided",
    ] {
        assert!(
            schedules < SCHEDULES || seen.get(what).is_some_and(|times| *times > 0),
            "{what} never happened: {seen:?}"
        );
    }
}

#[test]
fn a_seed_plays_the_same_again() {
    for seed in 0..25 {
        let (first, second) = (play(seed), play(seed));
        let (first, second) = (first.unwrap_or_else(|e| panic!("{e}")), second.unwrap_or_else(|e| panic!("{e}")));
        let differs = first.log.lines().zip(second.log.lines()).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed} plays otherwise");
        assert_eq!(first.digest, second.digest, "seed {seed} ends otherwise");
    }
    assert_ne!(play(1).map(|e| e.digest), play(2).map(|e| e.digest));
}
