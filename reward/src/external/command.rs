//! Carries requests to child processes, a line of JSON each way.
//!
//! There is one child for each request that is under way, started when it is first needed and used again afterwards. A child
//! that ends, answers with anything but the answer to its request, or is given up by a deadline is never used again; the
//! next one starts after a wait that grows with each failure.

use std::{
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use folgore_actors::{Backoff, link::BoxFuture};
use folgore_protocol::{Outcome, ScoreRequest};
use tokio::time::{Instant, sleep_until};

use super::{Carrier, Failure, child::Child, wire};

/// A program that scores.
pub struct Command {
    name: String,
    argv: Vec<String>,
    idle: Mutex<Vec<Child>>,
    starts: Mutex<Starts>,
    asked: AtomicU64,
}

/// When the next child may start.
struct Starts {
    backoff: Backoff,
    not_before: Instant,
}

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(20), Duration::from_secs(10), 0)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is held under these locks can be cut short half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Command {
    /// The program and arguments `argv`, as the reward `name`. Nothing is started yet.
    ///
    /// # Errors
    /// If there is no program.
    pub fn new(name: &str, argv: &[String]) -> Result<Self, String> {
        if argv.first().is_none_or(String::is_empty) {
            return Err("expected a program and its arguments, got none".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            argv: argv.to_vec(),
            idle: Mutex::default(),
            starts: Mutex::new(Starts { backoff: backoff(), not_before: Instant::now() }),
            asked: AtomicU64::new(1),
        })
    }

    async fn child(&self) -> Result<Child, Failure> {
        loop {
            let Some(mut idle) = locked(&self.idle).pop() else { break };
            // One that ended between two requests costs nobody's request.
            if idle.lives() {
                return Ok(idle);
            }
        }
        let not_before = locked(&self.starts).not_before;
        sleep_until(not_before).await;
        Child::start(&self.name, &self.argv).await.map_err(|error| {
            let reason = format!("{} cannot be started: {error}", self.argv[0]);
            match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Failure::lasting(reason),
                _ => Failure::passing(reason),
            }
        })
    }

    async fn attempt(&self, request: &ScoreRequest) -> Result<Vec<Outcome>, Failure> {
        let mut child = self.child().await?;
        let fresh = Fresh(self);
        let id = self.asked.fetch_add(1, Ordering::Relaxed);
        let line = wire::question(id, request)?;
        let reply = child.exchange(&line).await.map_err(Failure::passing)?;
        let outcomes = wire::answer(&reply, &self.name, id, true, request);
        if !matches!(&outcomes, Err(failure) if failure.kind == super::FailureKind::Passing) {
            fresh.not_needed();
            locked(&self.idle).push(child);
        }
        outcomes
    }
}

impl Carrier for Command {
    fn carry<'a>(&'a self, request: &'a ScoreRequest) -> BoxFuture<'a, Result<Vec<Outcome>, Failure>> {
        Box::pin(self.attempt(request))
    }
}

/// Makes the next start wait, unless it turns out that the child is well.
struct Fresh<'a>(&'a Command);

impl Fresh<'_> {
    fn not_needed(self) {
        locked(&self.0.starts).backoff = backoff();
        std::mem::forget(self);
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        let mut starts = locked(&self.0.starts);
        let wait = starts.backoff.next_wait();
        starts.not_before = Instant::now() + wait;
    }
}
