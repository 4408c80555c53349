//! How a process stops: first save and stop, then stop now.

use std::{io, sync::Arc};

use tokio::sync::watch;

/// How urgent it is. Only rises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Work as usual.
    #[default]
    Running,
    /// Take nothing new, save what is there, end with `Ok`.
    Stopping,
    /// The process is about to be gone; what is not saved is lost.
    Now,
}

/// One switch that all services of a process look at. Clones are the same switch.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(Arc<watch::Sender<Level>>);

impl Shutdown {
    /// A switch at [`Level::Running`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the switch is.
    pub fn level(&self) -> Level {
        *self.0.borrow()
    }

    /// True from [`Level::Stopping`] on.
    pub fn is_stopping(&self) -> bool {
        self.level() >= Level::Stopping
    }

    /// True at [`Level::Now`].
    pub fn is_now(&self) -> bool {
        self.level() == Level::Now
    }

    /// Asks for `level`; the switch never goes back.
    pub fn request(&self, level: Level) {
        self.0.send_if_modified(|current| {
            let rises = level > *current;
            *current = level.max(*current);
            rises
        });
    }

    /// Waits until the process is asked to stop. Cancel-safe, and at once if it was asked before.
    pub async fn stopping(&self) {
        self.reached(Level::Stopping).await;
    }

    /// Waits until the process is asked to stop now.
    pub async fn now(&self) {
        self.reached(Level::Now).await;
    }

    /// Runs `work` until the process is asked to stop; none if that came first, and `work` is dropped then.
    pub async fn unless_stopping<F: Future>(&self, work: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            () = self.stopping() => None,
            output = work => Some(output),
        }
    }

    async fn reached(&self, level: Level) {
        // The sender lives in self, hence waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|current| *current >= level).await;
    }
}

/// Turns Ctrl-C (and SIGTERM) into requests: the first asks to save and stop, the second to stop now. `said` is called
/// with the level each time, so that the screen can say so.
///
/// # Errors
/// If the signal handlers cannot be installed. Must be called inside a tokio runtime.
pub fn on_ctrl_c(shutdown: Shutdown, said: impl Fn(Level) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::install()?;
    tokio::spawn(async move {
        while signals.next().await {
            let level = if shutdown.is_stopping() { Level::Now } else { Level::Stopping };
            shutdown.request(level);
            said(level);
        }
    });
    Ok(())
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn install() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> bool {
        tokio::select! {
            came = self.interrupt.recv() => came.is_some(),
            came = self.terminate.recv() => came.is_some(),
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> bool {
        tokio::signal::ctrl_c().await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_level_only_rises_and_waits_end_at_their_level() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.is_stopping());
        assert_eq!(shutdown.unless_stopping(async { 7 }).await, Some(7));
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.stopping().await }
        });
        shutdown.request(Level::Stopping);
        waiting.await.unwrap();
        assert!(shutdown.is_stopping() && !shutdown.is_now());
        assert_eq!(shutdown.unless_stopping(async { 7 }).await, None);
        shutdown.request(Level::Now);
        shutdown.request(Level::Stopping);
        assert_eq!(shutdown.level(), Level::Now);
        shutdown.now().await;
    }
}
