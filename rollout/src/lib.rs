//! Makes trajectories: coordinator, episode worker, environments, generation engine.
//!
//! The [`coordinator`] turns open seats into jobs; a [`worker`] takes a job and plays its [`episode`] between an
//! [`environment`] and the policy; the [`generator`] owns the [`engine`] that speaks for the policy. They meet over links
//! only: each may run in a process of its own, and [`fleet`] is how those processes find each other.

pub mod coordinator;
pub mod encoder;
pub mod engine;
pub mod environment;
pub mod episode;
pub mod fleet;
pub mod generator;
pub mod published;
mod spans;
pub mod worker;

pub use coordinator::{Coordinator, CoordinatorConfig};
pub use encoder::ModelEncoder;
pub use engine::{DecoderModel, Engine, EngineConfig, EngineError, EngineStats, Model, TextPiece, cache_blocks};
pub use environment::{Environment, Environments};
pub use episode::{EpisodeLimits, PromptEncoder};
pub use generator::{ComputeGate, Generator, GeneratorConfig, PolicyLoader};
pub use published::Policies;
pub use worker::{RolloutWorker, WorkerConfig};
