//! From the end of a span to its export: a bounded queue that never waits, and one task that empties it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::settings::Batching;
use crate::lock;

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
pub struct Outbox(Arc<Shared>);

/// What both ends of the queue see.
#[derive(Debug)]
struct Shared {
    waiting: Mutex<VecDeque<SpanData>>,
    /// Rung for every full batch and not for every span: each ring wakes a thread.
    full: Notify,
    batching: Batching,
    ended: AtomicU64,
    exported: AtomicU64,
}

impl Outbox {
    /// Hands `span` over, or drops it where the queue is full.
    pub fn put(&self, span: SpanData) {
        let shared = &self.0;
        // What was not exported is counted as lost, whatever the reason.
        shared.ended.fetch_add(1, Relaxed);
        let mut waiting = lock(&shared.waiting);
        if waiting.len() < shared.batching.queue {
            waiting.push_back(span);
            if waiting.len() == shared.batching.batch {
                drop(waiting);
                shared.full.notify_one();
            }
        }
    }

    /// The counts so far; what still waits counts as lost.
    pub fn report(&self) -> Report {
        let exported = self.0.exported.load(Relaxed);
        Report { exported, lost: self.0.ended.load(Relaxed).saturating_sub(exported) }
    }
}

/// The other end of an [`Outbox`].
pub struct Pump {
    shared: Arc<Shared>,
    /// Longest that one export may take.
    limit: Duration,
}

/// A queue of `batching.queue` spans; each export may take `limit`.
pub fn outbox(batching: Batching, limit: Duration) -> (Outbox, Pump) {
    let shared = Arc::new(Shared {
        waiting: Mutex::default(),
        full: Notify::new(),
        batching,
        ended: AtomicU64::new(0),
        exported: AtomicU64::new(0),
    });
    (Outbox(shared.clone()), Pump { shared, limit })
}

impl Pump {
    /// Exports until `stop` names a moment: then what waits goes out, until that moment at most.
    pub async fn run(self, exporter: impl SpanExporter, mut stop: watch::Receiver<Option<Instant>>) {
        let mut told = stop.clone();
        let deadline = async move {
            // otherwise nobody is left who could end a span
            if let Ok(Some(until)) = told.wait_for(Option::is_some).await.map(|until| *until) {
                tokio::time::sleep_until(until).await;
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
    async fn gather(&self, stop: &mut watch::Receiver<Option<Instant>>) -> Vec<SpanData> {
        let Batching { batch, delay, .. } = self.shared.batching;
        loop {
            let waiting = lock(&self.shared.waiting).len();
            let stopped = waiting < batch
                && tokio::select! {
                    biased;
                    () = stopping(stop) => true,
                    () = self.shared.full.notified() => false,
                    () = sleep(delay) => false,
                };
            let mut waiting = lock(&self.shared.waiting);
            let many = waiting.len().min(batch);
            if many > 0 || stopped {
                return waiting.drain(..many).collect();
            }
        }
    }

    /// Sends one batch. A receiver that fails is told of once, not for every batch; returns whether it went well.
    async fn export(&self, exporter: &impl SpanExporter, batch: Vec<SpanData>, was_well: bool) -> bool {
        let spans = batch.len() as u64;
        let failure = match timeout(self.limit, exporter.export(batch)).await {
            Ok(Ok(())) => {
                self.shared.exported.fetch_add(spans, Relaxed);
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
    use std::time::SystemTime;

    use opentelemetry::{
        InstrumentationScope,
        trace::{SpanContext, SpanId, SpanKind, Status},
    };
    use opentelemetry_sdk::{
        error::{OTelSdkError, OTelSdkResult},
        trace::{SpanEvents, SpanLinks},
    };

    use super::*;
    use crate::telemetry::names;

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
        SpanData {
            span_context: SpanContext::NONE,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: names::SAMPLE.into(),
            start_time: SystemTime::now(),
            end_time: SystemTime::now(),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::default(),
        }
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
