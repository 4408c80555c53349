//! Names of the links, one place for all of them. `run` is added by the transport, never by an actor.

/// Queue of rollout jobs, coordinator to rollout workers.
pub const JOBS: &str = "jobs";
/// Queue of trajectories, rollout workers to replay.
pub const TRAJECTORIES: &str = "trajectories";
/// Ask: the scores for a `ScoreRequest`.
pub const REWARD: &str = "reward";
/// Ask: passages for a `Search`.
pub const SEARCH: &str = "search";
/// Ask: the tokens for a `Generate`; answered by the engine of the same process.
pub const GENERATE: &str = "generate";
/// Ask: how sure the policy is, a `Measure`; answered by the engine of the same process.
pub const MEASURE: &str = "measure";
/// Ask: questions to replay.
pub const REPLAY: &str = "replay";
/// State: the policy to serve.
pub const POLICY: &str = "policy";
/// Topic: progress of the run, for whoever watches.
pub const EVENTS: &str = "events";
/// State: the run's [`crate::RunCard`].
pub const CONFIG: &str = "config";
/// State: the highest epoch that a head has taken.
pub const EPOCH: &str = "epoch";
/// Ask: may a worker join; answered by the head.
pub const HELLO: &str = "hello";
/// Topic: who is there.
pub const HEARTBEATS: &str = "heartbeats";
/// Topic: messages that were rejected; kept for a while on a server.
pub const DEAD_LETTERS: &str = "dead_letters";
