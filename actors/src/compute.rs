//! Where a service computes: an operating-system thread of its own, whose end the service learns of.
//!
//! A thread that dies silently is the worst fault of all: its service would wait for ever. So the thread's panic or end
//! is a future, which the service waits for beside its work and passes up to the supervisor.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
};

use tokio::sync::oneshot;

use crate::{ServiceError, TraceContext};

/// An owned thread. Dropping this does not stop it: give the thread a channel or a [`crate::Shutdown`] that does.
#[derive(Debug)]
pub struct Compute {
    name: String,
    ended: oneshot::Receiver<Result<(), ServiceError>>,
}

impl Compute {
    /// Starts a thread called `name` that runs `work`.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn spawn<F>(name: &str, work: F) -> Result<Self, ServiceError>
    where
        F: FnOnce() -> Result<(), ServiceError> + Send + 'static,
    {
        let (report, ended) = oneshot::channel();
        let thread = name.to_owned();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(work));
                let result = result.unwrap_or_else(|panic| Err(panicked(&thread, &*panic)));
                if let Err(Err(lost)) = report.send(result) {
                    tracing::error!(thread, error = %lost, "compute thread failed after its owner had left");
                }
            })
            .map_err(|e| format!("compute thread {name}: cannot start: {e}"))?;
        Ok(Self { name: name.to_owned(), ended })
    }

    /// Waits for the end of the thread: what it returned, or its panic as an error. Cancel-safe; the end is told once,
    /// later calls say that it was told.
    pub async fn ended(&mut self) -> Result<(), ServiceError> {
        if self.ended.is_terminated() {
            return Err(format!("compute thread {}: its end was told before", self.name).into());
        }
        (&mut self.ended).await.map_err(|_| format!("compute thread {}: ended without a word", self.name))?
    }
}

/// A piece of work for a [`Lane`].
type Work = Box<dyn FnOnce() + Send>;

/// A thread that does one piece of work after another for its owner, and ends with it.
///
/// Work that takes gigabytes belongs on the same thread each time: allocators keep what a thread freed for that thread, and
/// a pool would keep it once for each of its threads.
#[derive(Debug)]
pub struct Lane {
    name: String,
    work: mpsc::Sender<Work>,
}

impl Lane {
    /// Starts a thread called `name`.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn new(name: &str) -> Result<Self, ServiceError> {
        let (work, todo) = mpsc::channel::<Work>();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || todo.into_iter().for_each(|work| work()))
            .map_err(|e| format!("compute thread {name}: cannot start: {e}"))?;
        Ok(Self { name: name.to_owned(), work })
    }

    /// Does `work` there, in the trace of the caller. Dropping the future does not stop it.
    ///
    /// # Errors
    /// If `work` panics; the thread goes on.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ServiceError> {
        let (report, done) = oneshot::channel();
        let context = TraceContext::current();
        let work = move || match context {
            Some(context) => context.scope_blocking(work),
            None => work(),
        };
        let work = Box::new(move || drop(report.send(catch_unwind(AssertUnwindSafe(work)))));
        self.work.send(work).map_err(|_| format!("compute thread {}: is gone", self.name))?;
        let done = done.await.map_err(|_| format!("compute thread {}: is gone", self.name))?;
        done.map_err(|panic| panicked(&self.name, &*panic))
    }
}

fn panicked(thread: &str, panic: &(dyn Any + Send)) -> ServiceError {
    format!("compute thread {thread} panicked: {}", panic_text(panic)).into()
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lane_is_one_thread_and_survives_a_panic() {
        let lane = Lane::new("learner").unwrap();
        let first = lane.run(|| std::thread::current().id()).await.unwrap();
        let dead = lane.run(|| panic!("row {}", 3)).await.unwrap_err();
        assert_eq!(dead.to_string(), "compute thread learner panicked: row 3");
        assert_eq!(lane.run(|| std::thread::current().id()).await.unwrap(), first);
    }

    #[tokio::test]
    async fn the_end_of_the_thread_is_a_future() {
        let mut fine = Compute::spawn("fine", || Ok(())).unwrap();
        assert!(fine.ended().await.is_ok());
        assert!(fine.ended().await.unwrap_err().to_string().contains("told before"));
        let mut failed = Compute::spawn("failed", || Err("no card".into())).unwrap();
        assert_eq!(failed.ended().await.unwrap_err().to_string(), "no card");
        let mut dead = Compute::spawn("engine", || panic!("row {}", 3)).unwrap();
        assert_eq!(dead.ended().await.unwrap_err().to_string(), "compute thread engine panicked: row 3");
    }
}
