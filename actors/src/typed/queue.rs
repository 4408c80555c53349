//! Typed work queues.

use std::{fmt, future::Future, time::Duration};

use folgore_protocol::{DeadLetter, Envelope, Format, subjects};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep};

use super::{CallError, open, seal};
use crate::{Backoff, LinkError, Links, Settle, TraceContext, hash};

/// What a pull brought.
#[derive(Debug)]
pub struct Pulled<T> {
    /// What can be worked on.
    pub jobs: Vec<Job<T>>,
    /// What could not be read; never delivered again. For the caller to count and report.
    pub rejected: Vec<Rejected>,
}

/// A message that could not be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    /// Its key.
    pub key: String,
    /// Who sent it, where the server vouches for that.
    pub sender: Option<String>,
    /// What is wrong with it.
    pub reason: String,
}

/// One piece of work, held until it is settled.
pub struct Job<T> {
    /// The work.
    pub body: T,
    /// The facts beside it.
    pub envelope: Envelope,
    /// From 1; above 1, somebody may have done the work already.
    pub attempt: u32,
    /// Who sent it, where the server vouches for that; none in the local form.
    pub sender: Option<String>,
    settle: Box<dyn Settle>,
}

impl<T: fmt::Debug> fmt::Debug for Job<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("key", &self.envelope.key).field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

impl<T> Job<T> {
    /// Done: never deliver again. [`LinkError::NotHeld`] if somebody else has it by now.
    pub async fn ack(&self) -> Result<(), LinkError> {
        self.settle.ack().await
    }

    /// Not done: deliver again after `delay`.
    pub async fn nak(&self, delay: Duration) -> Result<(), LinkError> {
        self.settle.nak(delay).await
    }

    /// Never deliver again, and not done either.
    pub async fn term(&self) -> Result<(), LinkError> {
        self.settle.term().await
    }

    /// Still at it: restarts the redelivery clock.
    pub async fn progress(&self) -> Result<(), LinkError> {
        self.settle.progress().await
    }

    /// Runs `work` in the trace of this job and tells the queue every `every` that it goes on. `work` must end by
    /// itself: bound it, or a hung worker keeps its job for ever.
    ///
    /// # Errors
    /// [`LinkError::NotHeld`] if somebody else has the job by now; `work` is dropped then. Other trouble with the
    /// telling is left to the next time.
    pub async fn keep_while<F: Future>(&self, every: Duration, work: F) -> Result<F::Output, LinkError> {
        let work = TraceContext::of(&self.envelope).scope(work);
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                output = &mut work => return Ok(output),
                () = sleep(every) => {
                    if let Err(lost @ LinkError::NotHeld { .. }) = self.progress().await {
                        return Err(lost);
                    }
                }
            }
        }
    }
}

impl Links {
    /// Appends one job; [`LinkError::Full`] at the bound of the queue.
    pub async fn publish_job<T: Serialize>(&self, subject: &str, job: &T, key: &str) -> Result<(), CallError> {
        let message = seal(&self.run, subject, job, key, Format::MessagePack, None)?;
        Ok(self.queue.publish(subject, message).await?)
    }

    /// Appends one job, trying again at most until `deadline` while the queue is full or does not answer; the last
    /// error after that. A publish without answer may have arrived: the job may then be there twice.
    pub async fn publish_job_waiting<T: Serialize>(
        &self,
        subject: &str,
        job: &T,
        key: &str,
        deadline: Duration,
    ) -> Result<(), CallError> {
        let until = Instant::now() + deadline;
        let message = seal(&self.run, subject, job, key, Format::MessagePack, None)?;
        let mut backoff =
            Backoff::new(Duration::from_millis(5), Duration::from_millis(500), hash(&["publish", subject, key]));
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.queue.publish(subject, message.clone()).await {
                Err(LinkError::Full { .. } | LinkError::Deadline { .. }) if !left.is_zero() => {
                    sleep(backoff.next_wait().min(left)).await
                }
                other => return Ok(other?),
            }
        }
    }

    /// Takes up to `max` jobs, waiting at most `wait` for the first. What cannot be read is ended and reported.
    pub async fn pull_jobs<T: DeserializeOwned>(
        &self,
        subject: &str,
        max: usize,
        wait: Duration,
    ) -> Result<Pulled<T>, LinkError> {
        let mut pulled = Pulled { jobs: Vec::new(), rejected: Vec::new() };
        for delivery in self.queue.pull(subject, max, wait).await? {
            match open(&self.run, subject, &delivery.message) {
                Ok(body) => pulled.jobs.push(Job {
                    body,
                    envelope: delivery.message.envelope,
                    attempt: delivery.attempt,
                    sender: delivery.sender,
                    settle: delivery.settle,
                }),
                Err(error) => {
                    let (bytes, key) = (delivery.message.body.len() as u64, delivery.message.envelope.key);
                    let (reason, sender) = (error.to_string(), delivery.sender);
                    tracing::warn!(subject, key, reason, "message rejected");
                    let (queue, of) = (subject.to_owned(), (key.clone(), sender.clone(), reason.clone()));
                    let letter = DeadLetter { queue, key: of.0, sender: of.1, reason: of.2, bytes };
                    if let Err(error) = self.publish_event(subjects::DEAD_LETTERS, &letter, &key).await {
                        tracing::warn!(subject, key, %error, "rejected message not told");
                    }
                    // If this fails, the message comes back and is rejected again.
                    if let Err(error) = delivery.settle.term().await {
                        tracing::warn!(subject, key, %error, "rejected message not ended");
                    }
                    pulled.rejected.push(Rejected { key, sender, reason });
                }
            }
        }
        Ok(pulled)
    }
}
