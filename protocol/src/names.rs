//! What things are called on a NATS server: subjects, streams, consumers and buckets of one run, one place for all of them.
//!
//! Subjects are `rl.v1.<run>.<kind>...`; the version changes only when an old peer could not read a new one. The last token
//! of `traj.<worker>` and `hb.<role>.<worker>` names the sender, and the server's permissions hold each identity to its own:
//! what arrives there is proof of who sent it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::RunName;

/// Longest run or worker name on a server.
const NAME_MAX: usize = 32;

/// What a process does in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Coordinator, replay and learner: one process, the one writer.
    Head,
    /// Makes trajectories.
    Rollout,
    /// Scores them.
    Reward,
    /// Finds passages.
    Retriever,
    /// Looks on.
    Console,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 5] = [Role::Head, Role::Rollout, Role::Reward, Role::Retriever, Role::Console];

    /// The name in subjects and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Role::Head => "head",
            Role::Rollout => "rollout",
            Role::Reward => "reward",
            Role::Retriever => "retriever",
            Role::Console => "console",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Checks the name of a worker or an identity: one subject token of at most 32 of `A-Z a-z 0-9 - _`.
pub fn check_name(what: &str, name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(allowed) {
        return Err(format!("{what} {name:?}: expected 1 to {NAME_MAX} of A-Z a-z 0-9 - _"));
    }
    Ok(())
}

/// The names of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    run: String,
}

/// Durable consumer of [`Names::jobs_stream`] that rollout workers pull from.
pub const ROLLOUT_CONSUMER: &str = "rollout";
/// Durable consumer of [`Names::trajectories_stream`] that replay pulls from.
pub const REPLAY_CONSUMER: &str = "replay";

impl Names {
    /// The names of `run`, which has to be one token of a subject.
    pub fn new(run: &RunName) -> Result<Self, String> {
        check_name("run", run.as_str())?;
        Ok(Self { run: run.as_str().to_owned() })
    }

    /// The run.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Prefix of all subjects of the run, without its dot.
    pub fn prefix(&self) -> String {
        format!("rl.v1.{}", self.run)
    }

    /// Jobs for rollout workers, in [`Names::jobs_stream`].
    pub fn rollout_jobs(&self) -> String {
        format!("rl.v1.{}.job.rollout", self.run)
    }

    /// Trajectories by `worker`, in [`Names::trajectories_stream`].
    pub fn trajectories_by(&self, worker: &str) -> String {
        format!("rl.v1.{}.traj.{worker}", self.run)
    }

    /// Trajectories by anyone.
    pub fn trajectories(&self) -> String {
        self.trajectories_by("*")
    }

    /// Requests of `kind` (`hello`, `reward`, `search`), served by a queue group.
    pub fn request(&self, kind: &str) -> String {
        format!("rl.v1.{}.req.{kind}", self.run)
    }

    /// Heartbeats of `worker` as `role`.
    pub fn heartbeat(&self, role: Role, worker: &str) -> String {
        format!("rl.v1.{}.hb.{role}.{worker}", self.run)
    }

    /// Everybody's heartbeats.
    pub fn heartbeats(&self) -> String {
        format!("rl.v1.{}.hb.>", self.run)
    }

    /// Progress told by `role`, for people.
    pub fn events_of(&self, role: Role) -> String {
        format!("rl.v1.{}.evt.{role}", self.run)
    }

    /// Everybody's progress.
    pub fn events(&self) -> String {
        format!("rl.v1.{}.evt.>", self.run)
    }

    /// Messages that were rejected, with the reason; `what` is `job` or `traj`.
    pub fn dead_letters(&self, what: &str) -> String {
        format!("rl.v1.{}.dlq.{what}", self.run)
    }

    /// Work queue of jobs.
    pub fn jobs_stream(&self) -> String {
        format!("RL_{}_JOBS", self.run)
    }

    /// Work queue of trajectories.
    pub fn trajectories_stream(&self) -> String {
        format!("RL_{}_TRAJ", self.run)
    }

    /// Rejected messages.
    pub fn dead_letters_stream(&self) -> String {
        format!("RL_{}_DLQ", self.run)
    }

    /// Progress, for whoever looks later.
    pub fn events_stream(&self) -> String {
        format!("RL_{}_EVT", self.run)
    }

    /// Key-value bucket of the latest values.
    pub fn state_bucket(&self) -> String {
        format!("rl_{}_state", self.run)
    }

    /// Key-value bucket whose values expire unless they are renewed.
    pub fn lease_bucket(&self) -> String {
        format!("rl_{}_lease", self.run)
    }

    /// Object bucket of policies, written by the head.
    pub fn adapters_bucket(&self) -> String {
        format!("rl_{}_adapters", self.run)
    }

    /// Object bucket of bodies that do not fit into a message, written by anyone. All runs of a server share it: a permission
    /// can tell it from a bucket of policies only if no run is part of its name.
    pub fn bodies_bucket(&self) -> String {
        "rl_bodies".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tokens_and_nothing_else() {
        let run = |name: &str| Names::new(&RunName::new(name).unwrap());
        assert_eq!(run("demo-1").unwrap().trajectories_by("w0"), "rl.v1.demo-1.traj.w0");
        assert!(run("demo.1").unwrap_err().contains("demo.1"), "a dot would be another token");
        assert!(run(&"x".repeat(33)).is_err());
        for bad in ["", "a b", "a.b", "*", ">", "..", "a\r\nb", "é"] {
            assert!(check_name("worker", bad).is_err(), "{bad:?} was taken");
        }
    }
}
