//! Typed work queues.

use std::{fmt, future::Future, time::Duration};

use folgore_protocol::{DeadLetter, Envelope, Format, subjects};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep};

use super::{CallError, open, seal};
use crate::{
    Backoff, Delivery, LinkError, Links, Message, Settle, TraceContext, hash,
    telemetry::{Span, SpanKind, names},
};

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
    queue: Source,
    settle: Box<dyn Settle>,
}

/// Where a job came from, for its span.
#[derive(Clone, Debug)]
struct Source {
    system: &'static str,
    subject: String,
    bytes: usize,
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

    /// The span of working on this job, in the trace that it carries. A redelivery is another child of the same sender, and
    /// points at the work before it.
    pub fn process_span(&self) -> Span {
        self.process_span_in(TraceContext::of(&self.envelope))
    }

    /// As [`Job::process_span`], for a job whose trace is known: what it carries is believed only if it is of `trace`.
    pub fn checked_span(&self, trace: TraceContext) -> Span {
        let carried = TraceContext::of(&self.envelope);
        self.process_span_in(if carried.is_of_trace(&trace) { carried } else { trace })
    }

    fn process_span_in(&self, sender: TraceContext) -> Span {
        let Source { system, subject, bytes } = &self.queue;
        let nth = |attempt: u32| sender.child(&format!("process {subject} {attempt}"));
        let name = format_args!("process {subject}");
        let mut span = Span::known(|| nth(self.attempt), sender, SpanKind::Consumer, name);
        if self.attempt > 1 && span.is_on() {
            span.link(&nth(self.attempt - 1));
        }
        describe(&mut span, system, "process", subject, &self.envelope.key, *bytes);
        span.set(names::DELIVERY_COUNT, i64::from(self.attempt));
        span
    }

    /// Runs `work` in the trace of this job, as its span, and tells the queue every `every` that it goes on. `work` must end by
    /// itself: bound it, or a hung worker keeps its job for ever.
    ///
    /// # Errors
    /// [`LinkError::NotHeld`] if somebody else has the job by now; `work` is dropped then. Other trouble with the
    /// telling is left to the next time.
    pub async fn keep_while<F: Future>(&self, every: Duration, work: F) -> Result<F::Output, LinkError> {
        // Beside the work: it goes on while a server that is away is told.
        let telling = async {
            loop {
                sleep(every).await;
                if let Err(lost @ LinkError::NotHeld { .. }) = self.progress().await {
                    return lost;
                }
            }
        };
        let mut span = self.process_span();
        let worked = tokio::select! {
            biased;
            output = span.scope(work) => Ok(output),
            lost = telling => Err(lost),
        };
        if let Err(lost) = &worked {
            span.fail("lost", lost);
        }
        worked
    }
}

impl Links {
    /// Appends one job; [`LinkError::Full`] at the bound of the queue.
    pub async fn publish_job<T: Serialize>(&self, subject: &str, job: &T, key: &str) -> Result<(), CallError> {
        let (mut span, message) = self.sent(subject, job, key)?;
        let published = self.queue.publish(subject, message).await;
        note_failure(&mut span, &published);
        Ok(published?)
    }

    /// A job about to be sent, in its span.
    fn sent<T: Serialize>(&self, subject: &str, job: &T, key: &str) -> Result<(Span, Message), CallError> {
        let mut message = seal(&self.run, subject, job, key, Format::MessagePack, None)?;
        let parent = TraceContext::of(&message.envelope);
        let mut span = Span::child_of(parent, SpanKind::Producer, format_args!("send {subject}"));
        describe(&mut span, self.queue.system(), "send", subject, key, message.body.len());
        message.envelope.traceparent = span.context().map(|context| context.traceparent());
        Ok((span, message))
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
        let (mut span, message) = self.sent(subject, job, key)?;
        let mut backoff =
            Backoff::new(Duration::from_millis(5), Duration::from_millis(500), hash(&["publish", subject, key]));
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.queue.publish(subject, message.clone()).await {
                Err(LinkError::Full { .. } | LinkError::Deadline { .. }) if !left.is_zero() => {
                    sleep(backoff.next_wait().min(left)).await
                }
                other => {
                    note_failure(&mut span, &other);
                    return Ok(other?);
                }
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
                    queue: Source {
                        system: self.queue.system(),
                        subject: subject.to_owned(),
                        bytes: delivery.message.body.len(),
                    },
                    envelope: delivery.message.envelope,
                    attempt: delivery.attempt,
                    sender: delivery.sender,
                    settle: delivery.settle,
                }),
                Err(error) => pulled.rejected.push(self.reject(subject, delivery, error.to_string()).await),
            }
        }
        Ok(pulled)
    }

    /// Tells that `delivery` cannot be read, and ends it.
    async fn reject(&self, subject: &str, delivery: Delivery, reason: String) -> Rejected {
        let Delivery { message, sender, settle, .. } = delivery;
        let (queue, key, bytes) = (subject.to_owned(), message.envelope.key, message.body.len() as u64);
        tracing::warn!(subject, key, reason, "message rejected");
        let letter = DeadLetter { queue, key, sender, reason, bytes };
        if let Err(error) = self.publish_event(subjects::DEAD_LETTERS, &letter, &letter.key).await {
            tracing::warn!(subject, key = letter.key, %error, "rejected message not told");
        }
        // If this fails, the message comes back and is rejected again.
        if let Err(error) = settle.term().await {
            tracing::warn!(subject, key = letter.key, %error, "rejected message not ended");
        }
        Rejected { key: letter.key, sender: letter.sender, reason: letter.reason }
    }
}

/// What the conventions want to know of a message.
fn describe(span: &mut Span, system: &'static str, operation: &'static str, subject: &str, key: &str, bytes: usize) {
    if span.is_on() {
        span.set(names::MESSAGING_SYSTEM, system);
        span.set(names::MESSAGING_OPERATION, operation);
        span.set(names::DESTINATION, subject.to_owned());
        span.set(names::MESSAGE_ID, key.to_owned());
        span.set(names::BODY_SIZE, bytes as i64);
    }
}

fn note_failure(span: &mut Span, published: &Result<(), LinkError>) {
    if let Err(error) = published {
        span.fail("publish", error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BoxFuture;

    /// A queue that is away: nothing told to it is ever answered.
    struct Away;

    impl Settle for Away {
        fn ack(&self) -> BoxFuture<'_, Result<(), LinkError>> {
            Box::pin(std::future::pending())
        }
        fn nak(&self, _delay: Duration) -> BoxFuture<'_, Result<(), LinkError>> {
            self.ack()
        }
        fn term(&self) -> BoxFuture<'_, Result<(), LinkError>> {
            self.ack()
        }
        fn progress(&self) -> BoxFuture<'_, Result<(), LinkError>> {
            self.ack()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_while_a_queue_that_is_away_is_told() {
        let (envelope, settle) = (Envelope::new("demo", "k"), Box::new(Away));
        let queue = Source { system: "local", subject: "jobs".into(), bytes: 0 };
        let job = Job { body: (), envelope, attempt: 1, sender: None, queue, settle };
        let second = Duration::from_secs(1);
        let work = async {
            for _ in 0..5 {
                sleep(second).await;
            }
            "done"
        };
        let kept = tokio::time::timeout(60 * second, job.keep_while(second, work)).await;
        assert_eq!(kept.expect("the work ends"), Ok("done"));
    }
}
