//! What a head was about when it was killed, told by what it left: its metrics, its record, its checkpoints, and what the
//! server holds.

use async_nats::jetstream;
use folgore_learner::record::Snapshot;
use folgore_protocol::{Trajectory, decode};

use crate::{
    fleet::{Fleet, RUN},
    support::{checkpoints, is_saving, raw_metrics, recorded},
};

/// Between which two writes it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Workers were at the step's samples.
    Generating,
    /// Trajectories were durable in the record, and their sender's queue did not know it yet.
    CommittedNotAcked,
    /// The batch was there, and its metrics were not.
    Learning,
    /// Files of a checkpoint were being written.
    Saving,
    /// The checkpoint was there, and the record did not know of its step.
    SavedNotCommitted,
    /// The record knew of the step, and the workers did not have its policy.
    CommittedNotPublished,
    /// Between two of these.
    Other,
}

impl Moment {
    /// The moment in which the head of `fleet` was killed.
    pub fn of(fleet: &Fleet) -> Self {
        let run = fleet.run_dir();
        if is_saving(&run) {
            return Self::Saving;
        }
        let (record, done) = (recorded(&run), raw_metrics(&run).len() as u64);
        let committed = record.counters.committed_step;
        if checkpoints(&run).into_iter().any(|step| step > committed) {
            return Self::SavedNotCommitted;
        }
        if committed == done && fleet.served().is_some_and(|served| served < committed) {
            return Self::CommittedNotPublished;
        }
        if fleet.queued().iter().any(|trajectory| is_in(&record, trajectory)) {
            return Self::CommittedNotAcked;
        }
        let asked = record.groups.values().any(|group| group.step == done + 1);
        match record.steps.get(&(done + 1)) {
            Some(step) if step.batch.is_some() => Self::Learning,
            Some(_) if asked => Self::Generating,
            _ => Self::Other,
        }
    }
}

/// True if the record has the seat of `trajectory` filled.
fn is_in(record: &Snapshot, trajectory: &Trajectory) -> bool {
    let seat = trajectory.seat;
    match record.groups.get(&seat.group) {
        Some(group) => group.seats.get(seat.sample as usize).is_some_and(|s| s.draw == seat.draw && s.filled.is_some()),
        None => record.steps.values().filter_map(|step| step.batch.as_ref()).flatten().any(|id| *id == seat.group),
    }
}

impl Fleet {
    /// The trajectories that the server has for replay, held or not.
    fn queued(&self) -> Vec<Trajectory> {
        self.runtime.block_on(async {
            let client = async_nats::connect(self.server.url()).await.unwrap();
            let stream = jetstream::new(client).get_stream(format!("RL_{RUN}_TRAJ")).await.unwrap();
            let state = &stream.cached_info().state;
            let mut queued = Vec::new();
            for sequence in state.first_sequence..=state.last_sequence {
                // Gaps are what was settled.
                if let Ok(message) = stream.get_raw_message(sequence).await {
                    queued.extend(decode::<Trajectory>(&message.payload));
                }
            }
            queued
        })
    }
}
