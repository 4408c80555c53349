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
/// Ask: questions to replay.
pub const REPLAY: &str = "replay";
/// State: the policy to serve.
pub const POLICY: &str = "policy";
/// Topic: progress of the run, for whoever watches.
pub const EVENTS: &str = "events";
