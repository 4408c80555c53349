//! The generation engine: many sequences, one forward a step.
//!
//! [`Engine`] is schedule, run, post-process. [`scheduler`] and [`blocks`] decide without numbers, [`model`] computes without
//! decisions, [`sequence`] is what both know of one request, [`stop`] finds stop strings.
//!
//! What a request gives depends on nothing but the request and its policy: not on what else runs, on the order of arrival,
//! on the limits, on preemption or on what the cache holds. The model keeps its part of this promise row by row, the engine
//! by drawing from a stream of the request, never from one of its own.

pub mod blocks;
mod engine;
pub mod model;
pub mod scheduler;
pub mod sequence;
pub mod stop;

#[cfg(test)]
pub(crate) mod fake;

pub use engine::{Engine, EngineConfig, EngineError, EngineStats, cache_blocks};
pub use model::{DecoderModel, Model};
pub use scheduler::{Counters, Limits};
pub use sequence::SequenceId;
pub use stop::TextPiece;
