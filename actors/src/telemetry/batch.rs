//! From the end of a span to its export: a bounded queue that never waits, and one task that empties it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout, timeout_at},
};

use super::settings::Batching;

/// What became of the spans of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Spans that the receiver has.
    pub exported: u64,
    /// Spans that it has not: the queue was full, an export failed, or the time at the end was up.
    pub lost: u64,
}

/// Where ended spans go.
#[derive(Debug)]
pub struct Outbox {
    queue: mpsc::Sender<SpanData>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    ended: AtomicU64,
    exported: AtomicU64,
}

impl Outbox {
    /// Hands `span` over, or drops it where the queue is full.
    pub fn put(&self, span: SpanData) {
        self.counts.ended.fetch_add(1, Relaxed);
        // What was not exported is counted as lost, whatever the reason.
        let _ = self.queue.try_send(span);
    }

    /// The counts so far; what still waits counts as lost.
    pub fn report(&self) -> Report {
        let exported = self.counts.exported.load(Relaxed);
        Report { exported, lost: self.counts.ended.load(Relaxed).saturating_sub(exported) }
    }
}

/// The other end of an [`Outbox`].
pub struct Pump {
    queue: mpsc::Receiver<SpanData>,
    counts: Arc<Counts>,
    batching: Batching,
    /// Longest that one export may take.
    limit: Duration,
}

/// A queue of `batching.queue` spans; each export may take `limit`.
pub fn outbox(batching: Batching, limit: Duration) -> (Outbox, Pump) {
    let (sender, queue) = mpsc::channel(batching.queue.max(1));
    let counts = Arc::new(Counts::default());
    (Outbox { queue: sender, counts: counts.clone() }, Pump { queue, counts, batching, limit })
}

impl Pump {
    /// Exports until `stop` names a moment: then what waits goes out, until that moment at most.
    pub async fn run(mut self, exporter: impl SpanExporter, mut stop: watch::Receiver<Option<Instant>>) {
        let mut told = stop.clone();
        let deadline = async move {
            match told.wait_for(Option::is_some).await.map(|until| *until) {
                Ok(Some(until)) => tokio::time::sleep_until(until).await,
                // Nobody is left who could end a span.
                Ok(None) | Err(_) => {}
            }
        };
        let work = async {
            let mut well = true;
            loop {
                let batch = self.gather(&mut stop).await;
                if batch.is_empty() {
                    return;
                }
                well = self.export(&exporter, batch, well).await;
            }
        };
        tokio::select! {
            biased;
            () = work => {}
            () = deadline => {}
        }
    }

    /// The next batch; empty when there will be none.
    async fn gather(&mut self, stop: &mut watch::Receiver<Option<Instant>>) -> Vec<SpanData> {
        let mut batch = Vec::new();
        let (room, delay, queue) = (self.batching.batch, self.batching.delay, &mut self.queue);
        let filled = async {
            queue.recv_many(&mut batch, room).await;
            let until = Instant::now() + delay;
            while batch.len() < room {
                let more = room - batch.len();
                match timeout_at(until, queue.recv_many(&mut batch, more)).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                }
            }
        };
        tokio::select! {
            biased;
            () = stopping(stop) => {}
            () = filled => return batch,
        }
        while batch.len() < room {
            match self.queue.try_recv() {
                Ok(span) => batch.push(span),
                Err(_) => break,
            }
        }
        batch
    }

    /// Sends one batch. A receiver that fails is told of once, not for every batch; returns whether it went well.
    async fn export(&self, exporter: &impl SpanExporter, batch: Vec<SpanData>, was_well: bool) -> bool {
        let spans = batch.len() as u64;
        let failure = match timeout(self.limit, exporter.export(batch)).await {
            Ok(Ok(())) => {
                self.counts.exported.fetch_add(spans, Relaxed);
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} ms", self.limit.as_millis()),
        };
        if was_well {
            tracing::warn!(failure, spans, "telemetry is not taken; spans are dropped until it is");
        } else {
            tracing::debug!(failure, spans, "telemetry is not taken");
        }
        false
    }
}

/// Waits until it is time to stop, or until nobody is left to say so.
async fn stopping(stop: &mut watch::Receiver<Option<Instant>>) {
    let _ = stop.wait_for(Option::is_some).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};

    use super::*;
    use crate::{TraceContext, telemetry::span::finished};

    #[derive(Clone, Debug, Default)]
    struct Receiver {
        batches: Arc<Mutex<Vec<usize>>>,
        /// What it does to a batch.
        fault: Option<Fault>,
    }

    #[derive(Clone, Copy, Debug)]
    enum Fault {
        Hang,
        Refuse,
    }

    impl SpanExporter for Receiver {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.batches.lock().unwrap().push(batch.len());
            match self.fault {
                None => Ok(()),
                Some(Fault::Hang) => std::future::pending().await,
                Some(Fault::Refuse) => Err(OTelSdkError::InternalFailure("503".into())),
            }
        }
    }

    fn span() -> SpanData {
        finished(TraceContext::root("run", "g0.0.0"))
    }

    const BATCHING: Batching = Batching { queue: 8, batch: 3, delay: Duration::from_secs(5) };
    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn spans_go_out_in_batches_and_the_rest_at_the_end() {
        let receiver = Receiver::default();
        let (outbox, pump) = outbox(BATCHING, LIMIT);
        let (stop, stopped) = watch::channel(None);
        let pump = tokio::spawn(pump.run(receiver.clone(), stopped));
        (0..4).for_each(|_| outbox.put(span()));
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(*receiver.batches.lock().unwrap(), [3, 1], "a full batch at once, the other after the delay");
        (0..5).for_each(|_| outbox.put(span()));
        stop.send_replace(Some(Instant::now() + Duration::from_secs(2)));
        pump.await.unwrap();
        assert_eq!(*receiver.batches.lock().unwrap(), [3, 1, 3, 2]);
        assert_eq!(outbox.report(), Report { exported: 9, lost: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_hangs_or_refuses_costs_spans_and_two_seconds() {
        for fault in [Fault::Hang, Fault::Refuse] {
            let receiver = Receiver { fault: Some(fault), ..Receiver::default() };
            let (outbox, pump) = outbox(BATCHING, LIMIT);
            let (stop, stopped) = watch::channel(None);
            let pump = tokio::spawn(pump.run(receiver.clone(), stopped));
            (0..100).for_each(|_| outbox.put(span()));
            tokio::time::sleep(Duration::from_secs(1)).await;
            let begin = Instant::now();
            stop.send_replace(Some(begin + Duration::from_secs(2)));
            pump.await.unwrap();
            assert!(begin.elapsed() <= Duration::from_secs(2), "{fault:?}: {:?}", begin.elapsed());
            assert_eq!(outbox.report(), Report { exported: 0, lost: 100 });
            assert!(!receiver.batches.lock().unwrap().is_empty(), "{fault:?}: it was tried");
        }
    }
}
