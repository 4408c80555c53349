//! What replay tells whoever listens, after the change is durable.

use folgore_protocol::{GroupId, PolicyId, SeatKey};
use serde::{Deserialize, Serialize};

/// Something that happened, on topic `events`. Losable: the record is the truth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ReplayEvent {
    /// A seat has its trajectory.
    SeatClosed {
        /// The seat.
        seat: SeatKey,
        /// Its reward; none in an evaluation where the reward failed, and where its group is still to be judged.
        reward: Option<f64>,
    },
    /// A seat is drawn again.
    SeatRefilled {
        /// The draw that is awaited now.
        seat: SeatKey,
        /// Why the last one did not do.
        reason: String,
    },
    /// A trajectory was not taken.
    TrajectoryRefused {
        /// The seat that it was for.
        seat: SeatKey,
        /// Who made it.
        worker: String,
        /// Why.
        reason: String,
    },
    /// A worker handed in what no honest sampler makes.
    WorkerStruck {
        /// Its name.
        worker: String,
        /// Its strikes so far.
        strikes: u32,
        /// What it did.
        reason: String,
    },
    /// Nothing more is taken from a worker.
    WorkerQuarantined {
        /// Its name.
        worker: String,
        /// Trajectories of its that were in and waited for a batch: they are void.
        voided: u32,
    },
    /// All seats of a group are in.
    GroupClosed {
        /// The group.
        group: GroupId,
        /// The step that will train on it.
        step: u64,
        /// Mean reward.
        mean_reward: f64,
    },
    /// A group was left out whole.
    GroupDropped {
        /// The group.
        group: GroupId,
        /// The step that it was for.
        step: u64,
        /// Why.
        reason: String,
    },
    /// A batch is complete.
    BatchReady {
        /// The step that will train on it.
        step: u64,
        /// Its groups.
        groups: u32,
        /// Groups left out on the way.
        left_out: u32,
    },
    /// All samples of an evaluation are in.
    EvalClosed {
        /// Its label.
        label: String,
    },
    /// A step is trained.
    StepCommitted {
        /// The step.
        step: u64,
        /// The policy that came out of it.
        policy: PolicyId,
    },
    /// A learner took the run over.
    RunResumed {
        /// From the checkpoint of this step.
        step: u64,
        /// The writer's new epoch.
        epoch: u32,
    },
    /// The record cannot be written: nothing is taken in until it can.
    RecordUnavailable {
        /// Why.
        reason: String,
    },
}
