//! Turns trajectories into adapters: replay, objectives, packing, optimiser, checkpoints.

pub mod advantage;
pub mod alarm;
pub mod ask;
pub mod checkpoint;
pub mod evaluation;
pub mod learner;
pub mod metrics;
pub mod objective;
pub mod packing;
pub mod pretrain;
pub mod record;
pub mod replay;
pub mod schedule;
pub mod sft;
mod spans;
pub mod step;
pub mod trainee;
