//! `cluster`: how patient the processes of a run are with each other. One process alone needs none of it.

use serde::{Deserialize, Serialize};

use crate::Problems;

/// The section `cluster`. The first two are told to the server when the queues of the run are made; those that were there
/// before keep their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterSection {
    /// Seconds after which a job goes to another worker, if the one that took it says nothing: a dead worker is noticed by
    /// this, and one that is paused for longer loses its jobs.
    pub ack_wait_s: u32,
    /// Seconds without a word of the head after which another one may take the run.
    pub lease_s: u32,
    /// Seconds after which jobs are made again that no queue holds, because the server lost them.
    pub reissue_after_s: u32,
}

impl Default for ClusterSection {
    fn default() -> Self {
        Self { ack_wait_s: 60, lease_s: 15, reissue_after_s: 10 }
    }
}

impl ClusterSection {
    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.range("ack_wait_s", 2.0, 3600.0, self.ack_wait_s.into());
        p.range("lease_s", 2.0, 3600.0, self.lease_s.into());
        p.range("reissue_after_s", 2.0, 3600.0, self.reissue_after_s.into());
    }
}
