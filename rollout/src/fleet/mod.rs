//! Many processes, one run: who is there ([`roster`]), how a worker joins and shows itself ([`mod@join`], [`pulse`]), who lets it
//! in ([`reception`]), and what holds the run up when it does not go on ([`watchdog`]).

pub mod join;
pub mod pulse;
pub mod reception;
pub mod roster;
pub mod watchdog;

pub use join::{JoinError, join};
pub use pulse::{Pulse, PulseConfig};
pub use reception::Reception;
pub use roster::{Roster, Strength};
pub use watchdog::{Stuck, Watchdog, WatchdogConfig};

use std::time::Duration;

/// Between two heartbeats.
pub const BEAT: Duration = Duration::from_secs(5);
/// A worker that was not heard of for so long is taken to be gone.
pub const GONE_AFTER: Duration = Duration::from_secs(16);
