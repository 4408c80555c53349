//! Where a service computes: an operating-system thread of its own, whose end the service learns of.
//!
//! A thread that dies silently is the worst fault of all: its service would wait for ever. So the thread's panic or end
//! is a future, which the service waits for beside its work and passes up to the supervisor.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use tokio::sync::oneshot;

use crate::ServiceError;

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
