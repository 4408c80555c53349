//! Ctrl-C and SIGTERM at a training.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use anyhow::Result;
use folgore_actors::{Level, Shutdown, on_ctrl_c};
use tokio::runtime::Runtime;

use crate::commands::train::INTERRUPTED;

/// What Ctrl-C and SIGTERM do to a training. They are heeded from the first moment, because the first process of a container
/// is not ended by a signal that it does not heed: before the actors are there nothing is lost, and the process ends at once.
pub struct Signals {
    came: Arc<AtomicBool>,
    begun: Arc<OnceLock<(Shutdown, Say)>>,
}

/// Says a line to the user.
type Say = Box<dyn Fn(&str) + Send + Sync>;

impl Signals {
    /// Heeds signals from now on, on `runtime`.
    pub fn heed(runtime: &Runtime) -> Result<Self> {
        let signals = Self { came: Arc::default(), begun: Arc::default() };
        let (came, begun) = (signals.came.clone(), signals.begun.clone());
        let _inside = runtime.enter();
        on_ctrl_c(Shutdown::new(), move |level| {
            came.store(true, Ordering::Relaxed);
            let Some((shutdown, say)) = begun.get() else { std::process::exit(INTERRUPTED) };
            say(match level {
                Level::Now => "stopping now; --resume goes on from the last checkpoint",
                _ => "saving and stopping after this step; Ctrl-C again stops now",
            });
            if level == Level::Now {
                std::process::exit(INTERRUPTED);
            }
            shutdown.request(level);
        })?;
        Ok(signals)
    }

    /// From now on a signal stops who looks at `shutdown`, and `say` says so.
    pub fn stop(&self, shutdown: Shutdown, say: impl Fn(&str) + Send + Sync + 'static) {
        let first = self.begun.set((shutdown, Box::new(say)));
        debug_assert!(first.is_ok(), "a process trains once");
    }

    /// Whether one came.
    pub fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }
}
