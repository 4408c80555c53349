//! The `Watchdog` service of the head: names the stage that holds the run up, and why.
//!
//! A run that waits is no error: nobody may be there yet, or a server may be away. It is shown, and shown again when the
//! reason changes.

use std::{sync::Arc, time::Duration};

use folgore_actors::{BoxFuture, Context, Observed, Service, ServiceError, SupervisorHandle};
use folgore_protocol::Role;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::Roster;

/// What a watchdog watches, and whom it tells.
#[derive(Clone)]
pub struct WatchdogConfig {
    /// Nothing happened for so long: worth a word.
    pub patience: Duration,
    /// True if scores come from reward workers.
    pub remote_reward: bool,
    /// True if passages come from retriever workers.
    pub remote_search: bool,
    /// True while the server answers.
    pub connected: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Told the reason each time it changes; an empty text when the run goes on.
    pub tell: Arc<dyn Fn(&str) + Send + Sync>,
}

/// The service.
pub struct Watchdog {
    /// What it watches.
    pub config: WatchdogConfig,
    /// Who is there.
    pub roster: Roster,
    /// The actors of the head.
    pub supervisor: SupervisorHandle,
}

/// What holds a run up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The stage (`server`, `rollout`, `search`, `reward`, `replay`, `learner`, `coordinator`).
    pub stage: &'static str,
    /// Why, and what helps.
    pub why: String,
}

/// The facts at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The server answers.
    pub connected: bool,
    /// Scores come from reward workers.
    pub remote_reward: bool,
    /// Passages come from retriever workers.
    pub remote_search: bool,
    /// Rollout workers there.
    pub rollout_workers: usize,
    /// Episodes in their hands.
    pub active: u64,
    /// Reward workers there.
    pub reward_workers: usize,
    /// Retriever workers there.
    pub retriever_workers: usize,
    /// Seats that wait for a trajectory.
    pub open_seats: u64,
    /// Groups that wait to be judged.
    pub unjudged_groups: u64,
    /// Jobs in the queue.
    pub jobs_waiting: u64,
    /// Jobs in somebody's hands.
    pub jobs_held: u64,
    /// Trajectories in the queue.
    pub trajectories_waiting: u64,
    /// Why the record cannot be used, if it cannot.
    pub record_unavailable: Option<String>,
    /// How long nothing has come in and no step was done.
    pub quiet: Duration,
}

impl Facts {
    /// What holds the run up; none if it goes on, or not for longer than `patience` yet.
    pub fn diagnose(&self, patience: Duration) -> Option<Stuck> {
        let stuck = |stage, why| Some(Stuck { stage, why });
        let quiet = self.quiet.as_secs();
        if !self.connected {
            return stuck("server", "the NATS server does not answer; the run goes on when it is back".into());
        }
        if let Some(reason) = &self.record_unavailable {
            return stuck("replay", format!("nothing is taken in: {reason}"));
        }
        if self.open_seats > 0 && self.rollout_workers == 0 {
            let why = format!("no rollout worker is there: {} seats wait for one", self.open_seats);
            return stuck("rollout", why);
        }
        if self.open_seats > 0 && self.remote_search && self.retriever_workers == 0 {
            return stuck("search", "no retriever worker is there: no search is answered".into());
        }
        if self.open_seats + self.unjudged_groups > 0 && self.remote_reward && self.reward_workers == 0 {
            return stuck("reward", "no reward worker is there: nothing can be scored".into());
        }
        if self.quiet < patience {
            return None;
        }
        if self.trajectories_waiting > 0 {
            return stuck("replay", format!("{} trajectories wait for {quiet} s", self.trajectories_waiting));
        }
        if self.jobs_held > 0 {
            let why = format!("{} episodes are under way, none ended for {quiet} s", self.jobs_held.max(self.active));
            return stuck("rollout", why);
        }
        if self.jobs_waiting > 0 {
            let why = format!(
                "{} jobs wait, and none of {} workers takes one for {quiet} s",
                self.jobs_waiting, self.rollout_workers
            );
            return stuck("rollout", why);
        }
        if self.unjudged_groups > 0 {
            return stuck("reward", format!("{} groups wait to be judged for {quiet} s", self.unjudged_groups));
        }
        if self.open_seats > 0 {
            let why = format!("{} seats are open, and no job for them is on its way for {quiet} s", self.open_seats);
            return stuck("coordinator", why);
        }
        stuck("learner", format!("no seat is open and no step was done for {quiet} s"))
    }
}

/// What changes when the run goes on.
#[derive(Default, PartialEq)]
struct Progress {
    trajectories: u64,
    refused: u64,
    committed: u64,
}

impl Watchdog {
    async fn watch(self, context: Context) {
        let (mut last, mut since, mut told) = (Progress::default(), Instant::now(), String::new());
        loop {
            let now = Instant::now();
            let observed = self.supervisor.observe().await.unwrap_or_default();
            let progress = progress(&observed);
            if progress != last {
                (last, since) = (progress, now);
            }
            let facts = self.facts(&observed, now, now.saturating_duration_since(since));
            let stuck = facts.diagnose(self.config.patience);
            context.status.set(serde_json::json!({
                "stage": stuck.as_ref().map(|s| s.stage), "why": stuck.as_ref().map(|s| &s.why),
                "rollout_workers": facts.rollout_workers, "reward_workers": facts.reward_workers,
                "retriever_workers": facts.retriever_workers,
            }));
            // Times in the text change by the second; the stage and its first word are what is told once.
            let reason = stuck.map_or_else(String::new, |s| format!("{}: {}", s.stage, s.why));
            if letters(&reason) != letters(&told) {
                (self.config.tell)(&reason);
                told = reason;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn facts(&self, observed: &[Observed], now: Instant, quiet: Duration) -> Facts {
        let (replay, coordinator) = (status(observed, "replay"), status(observed, "coordinator"));
        let number = |value: Option<&Value>, key: &str| value.and_then(|v| v.get(key)?.as_u64()).unwrap_or(0);
        let rollout = self.roster.strength(Role::Rollout, now);
        Facts {
            connected: (self.config.connected)(),
            remote_reward: self.config.remote_reward,
            remote_search: self.config.remote_search,
            rollout_workers: rollout.workers,
            active: rollout.active,
            reward_workers: self.roster.strength(Role::Reward, now).workers,
            retriever_workers: self.roster.strength(Role::Retriever, now).workers,
            open_seats: number(replay, "open_seats"),
            unjudged_groups: number(replay, "unjudged_groups"),
            jobs_waiting: number(coordinator, "jobs_waiting"),
            jobs_held: number(coordinator, "jobs_held"),
            trajectories_waiting: number(coordinator, "trajectories_waiting"),
            record_unavailable: replay.and_then(|v| v.get("unavailable")?.as_str()).map(str::to_owned),
            quiet,
        }
    }
}

impl Service for Watchdog {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let shutdown = context.shutdown.clone();
            let _ = shutdown.unless_stopping(self.watch(context)).await;
            Ok(())
        })
    }
}

fn status<'a>(observed: &'a [Observed], name: &str) -> Option<&'a Value> {
    observed.iter().find(|o| o.name == name).map(|o| &o.status)
}

fn progress(observed: &[Observed]) -> Progress {
    let replay = status(observed, "replay");
    let number = |key: &str| replay.and_then(|v| v.get(key)?.as_u64()).unwrap_or(0);
    let refused = replay.and_then(|v| v.get("refused")?.as_array()).into_iter().flatten();
    let refused = refused.filter_map(|pair| pair.get(1)?.as_u64()).sum();
    Progress { trajectories: number("trajectories"), refused, committed: number("committed_step") }
}

fn letters(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn well() -> Facts {
        Facts {
            connected: true,
            rollout_workers: 2,
            open_seats: 8,
            jobs_waiting: 4,
            jobs_held: 4,
            quiet: Duration::from_secs(5),
            ..Facts::default()
        }
    }

    #[test]
    fn the_stage_that_holds_the_run_up_is_named() {
        assert_eq!(well().diagnose(PATIENCE), None);
        let stage = |facts: &Facts| facts.diagnose(PATIENCE).map(|s| s.stage);
        assert_eq!(stage(&Facts { connected: false, ..well() }), Some("server"));
        assert_eq!(stage(&Facts { rollout_workers: 0, ..well() }), Some("rollout"));
        assert_eq!(stage(&Facts { rollout_workers: 0, open_seats: 0, ..well() }), None, "nobody is needed");
        assert_eq!(stage(&Facts { remote_reward: true, ..well() }), Some("reward"));
        assert_eq!(stage(&Facts { remote_search: true, ..well() }), Some("search"));
        assert_eq!(stage(&Facts { remote_search: true, open_seats: 0, ..well() }), None, "nobody searches");
        assert_eq!(stage(&Facts { record_unavailable: Some("disk full".into()), ..well() }), Some("replay"));
        let quiet = Facts { quiet: PATIENCE, ..well() };
        assert_eq!(stage(&quiet), Some("rollout"));
        assert_eq!(stage(&Facts { trajectories_waiting: 3, ..quiet.clone() }), Some("replay"));
        assert_eq!(stage(&Facts { jobs_held: 0, ..quiet.clone() }), Some("rollout"));
        assert_eq!(stage(&Facts { jobs_held: 0, jobs_waiting: 0, ..quiet.clone() }), Some("coordinator"));
        let unjudged = Facts { unjudged_groups: 2, open_seats: 0, ..well() };
        assert_eq!(stage(&unjudged), None);
        assert_eq!(stage(&Facts { remote_reward: true, ..unjudged.clone() }), Some("reward"));
        let quiet_judge = Facts { jobs_held: 0, jobs_waiting: 0, quiet: PATIENCE, ..unjudged };
        assert_eq!(stage(&quiet_judge), Some("reward"));
        assert_eq!(stage(&Facts { jobs_held: 0, jobs_waiting: 0, open_seats: 0, ..quiet }), Some("learner"));
    }

    #[test]
    fn zero_workers_is_told_with_what_waits() {
        let stuck = Facts { rollout_workers: 0, ..well() }.diagnose(PATIENCE).unwrap();
        assert!(stuck.why.contains("8 seats"), "{}", stuck.why);
    }
}
