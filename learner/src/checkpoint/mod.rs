//! What a run leaves behind: checkpoints, the lock on its folder, and `metrics.jsonl`.
//!
//! ```text
//! checkpoints/checkpoint-<step>/  adapter_config.json  adapter_model.safetensors  (a PEFT folder)
//!                                 state/trainer.json   state/optimizer.safetensors
//!                                 agent_config.yaml    (what its owner puts beside: how the policy is spoken to)
//!                                 manifest.json        (written last)
//! ```
//! A checkpoint is written aside, every file synced, then its manifest, then renamed into place: whatever happens on the
//! way, the newest folder that verifies is either the old state or the new one.

pub mod disk;
pub mod lock;
mod manifest;
mod metrics_log;
pub mod state;
mod store;

pub use disk::{Disk, RealDisk};
pub use lock::RunLock;
pub use manifest::{FileEntry, Manifest};
pub use metrics_log::{CutBack, MetricsLog};
pub use state::TrainerState;
pub use store::{Checkpoint, CheckpointError, CheckpointMeta, CheckpointStore, Skipped};
