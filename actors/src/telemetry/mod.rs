//! OpenTelemetry: spans of one sample's way through all processes, sent over OTLP where `OTEL_EXPORTER_OTLP_ENDPOINT` says.
//!
//! | file | what it is for |
//! |---|---|
//! | [`settings`] | the `OTEL_*` variables |
//! | [`names`] | names of spans and attributes, with the version of the conventions |
//! | [`span`] | one span |
//! | [`batch`] | the bounded queue, and what is lost |
//! | [`exporter`] | OTLP over HTTP and gRPC |
//! | [`metrics`] | numbers, read when it is time to send them |
//!
//! Work never waits for telemetry: a span is handed to a bounded queue and dropped where that is full; one thread with a runtime
//! of its own sends, so that no runtime of the product can be the one that waits for itself; at the end it has two seconds.
//! Without an endpoint there is no thread and no queue, and a span costs one atomic load.

pub mod batch;
pub mod exporter;
pub mod metrics;
pub mod names;
pub mod settings;
pub mod span;

pub use batch::Report;
pub use opentelemetry::{Array, KeyValue, StringValue, Value};
pub use span::{Span, SpanKind};

use std::{
    io,
    sync::{
        Arc, LazyLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use opentelemetry::InstrumentationScope;
use opentelemetry_sdk::{
    Resource,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::SpanExporter as _,
};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::Instant,
};

use crate::TraceContext;
use batch::{Outbox, Pump, outbox};
use settings::{Sampler, Settings};

/// What telemetry may take of the end of a process.
pub const END_WITHIN: Duration = Duration::from_secs(2);

/// Why there is no telemetry although it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A variable says what cannot be done.
    #[error("{name}: expected {expected}, got {got:?}")]
    Variable {
        /// Its name.
        name: String,
        /// What it may say.
        expected: &'static str,
        /// What it says.
        got: String,
    },
    /// The exporter cannot be made.
    #[error("OTLP exporter: {0}")]
    Exporter(String),
    /// The operating system gives no thread.
    #[error("telemetry thread: {0}")]
    Thread(#[from] io::Error),
}

/// Who sends: what all spans and metrics of a process have in common.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The run.
    pub run: String,
    /// What the process does in it.
    pub role: String,
    /// Name of the worker.
    pub worker: String,
}

impl Identity {
    /// As an OpenTelemetry resource. What the environment says of the same goes before.
    fn resource(&self) -> Resource {
        let process = std::process::id();
        let ours = [
            KeyValue::new("service.name", "folgore"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", format!("{}-{process}", self.worker)),
            KeyValue::new("process.pid", i64::from(process)),
            KeyValue::new(names::RUN, self.run.clone()),
            KeyValue::new(names::ROLE, self.role.clone()),
            KeyValue::new(names::WORKER, self.worker.clone()),
        ];
        let told = Resource::builder_empty()
            .with_attributes(ours)
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_detector(Box::new(EnvResourceDetector::new()));
        match std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty()) {
            Some(name) => told.with_service_name(name).build(),
            None => told.build(),
        }
    }
}

/// True while spans are taken: the only thing looked at where there is no telemetry.
static ON: AtomicBool = AtomicBool::new(false);
static ACTIVE: RwLock<Option<Arc<Active>>> = RwLock::new(None);

/// What spans need.
struct Active {
    outbox: Outbox,
    sampler: Sampler,
    scope: InstrumentationScope,
}

/// True while spans are taken: where gathering what they say is costly.
pub fn is_on() -> bool {
    ON.load(Relaxed)
}

/// Takes spans, or takes none for a while; nothing to do where telemetry is off.
pub fn listen(on: bool) {
    ON.store(on && ACTIVE.read().unwrap_or_else(PoisonError::into_inner).is_some(), Relaxed);
}

fn active() -> Option<Arc<Active>> {
    if !is_on() {
        return None;
    }
    ACTIVE.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn activate(active: Option<Arc<Active>>) {
    ON.store(active.is_some(), Relaxed);
    *ACTIVE.write().unwrap_or_else(PoisonError::into_inner) = active;
}

/// Where a span of `context` goes, if it is to be exported.
fn listening(context: &TraceContext) -> Option<Arc<Active>> {
    active().filter(|active| active.sampler.takes(context))
}

/// True if spans of the trace are exported here, or if that is for others to say.
pub(crate) fn samples(trace: &[u8; 16]) -> bool {
    active().is_none_or(|active| active.sampler.takes_trace(trace))
}

/// A span id that no other span has: a place in a sequence that begins at random, mixed.
fn fresh_id() -> u64 {
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| {
        let mut bytes = [0; 8];
        // Without random numbers, processes of different ids still differ.
        let known = getrandom::fill(&mut bytes).map(|()| u64::from_le_bytes(bytes));
        AtomicU64::new(known.unwrap_or_else(|_| u64::from(std::process::id()) << 32))
    });
    // Never 0 but for one place in the sequence.
    folgore_protocol::seed::mix(&[NEXT.fetch_add(1, Relaxed)]).max(1)
}

/// Something that has to be flushed at the end, within the time given.
type AtEnd = Box<dyn FnOnce(Duration) + Send>;

/// The telemetry of this process; ends when it is dropped.
#[derive(Default)]
pub struct Telemetry {
    settings: Settings,
    running: Option<Running>,
}

struct Running {
    resource: Resource,
    runtime: Handle,
    traces: Option<Arc<Active>>,
    /// Tells the pump by when it has to be done.
    stop: watch::Sender<Option<Instant>>,
    /// Hears that it is.
    pumped: mpsc::Receiver<()>,
    /// Ends the runtime, when dropped.
    _close: oneshot::Sender<()>,
    at_end: Vec<AtEnd>,
}

impl Telemetry {
    /// None, whatever the environment says.
    pub fn off() -> Self {
        Self::default()
    }

    /// What the environment asks for; nothing is built if it asks for nothing.
    pub fn start(who: &Identity) -> Result<Self, TelemetryError> {
        Self::with(Settings::from_env()?, who)
    }

    /// As `settings` say.
    pub fn with(settings: Settings, who: &Identity) -> Result<Self, TelemetryError> {
        if settings.traces.is_none() && settings.metrics.is_none() {
            return Ok(Self { settings, running: None });
        }
        let running = Running::start(&settings, who.resource())?;
        activate(running.traces.clone());
        Ok(Self { settings, running: Some(running) })
    }

    /// What became of the spans of this process so far; none where none are taken. What still waits counts as lost.
    pub fn spans() -> Option<Report> {
        active().map(|active| active.outbox.report())
    }

    /// What was asked for.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where a meter provider plugs in: who sends, and the runtime for [`exporter::OwnRuntime`] and for making a gRPC channel;
    /// none where telemetry is off.
    pub fn place(&self) -> Option<(Resource, Handle)> {
        self.running.as_ref().map(|running| (running.resource.clone(), running.runtime.clone()))
    }

    /// Has `flush` called at the end, on a thread of its own, with the time that is left.
    pub fn at_end(&mut self, flush: impl FnOnce(Duration) + Send + 'static) {
        if let Some(running) = &mut self.running {
            running.at_end.push(Box::new(flush));
        }
    }

    /// Sends what waits, for [`END_WITHIN`] at most, and says what became of the spans; none where there were none to send.
    /// Blocks: not for a thread of a runtime that others need.
    pub fn end(mut self) -> Option<Report> {
        self.running.take().and_then(Running::end)
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }
}

impl Running {
    fn start(settings: &Settings, resource: Resource) -> Result<Self, TelemetryError> {
        let (stop, stopped) = watch::channel(None);
        let (close, closed) = oneshot::channel::<()>();
        let (pumped_sender, pumped) = mpsc::channel();
        let (ready_sender, ready) = mpsc::channel();
        let (traces, pump) = match &settings.traces {
            None => (None, None),
            Some(destination) => {
                let (outbox, pump) = outbox(settings.batching, destination.timeout);
                let active = Active { outbox, sampler: settings.sampler, scope: scope() };
                (Some(Arc::new(active)), Some((destination.clone(), pump)))
            }
        };
        let told = resource.clone();
        std::thread::Builder::new().name("telemetry".into()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready_sender.send(Err(TelemetryError::Thread(error)))),
            };
            runtime.block_on(async {
                match start_pump(pump, &told, stopped, pumped_sender) {
                    // Nobody waits for it any more if this fails.
                    Ok(()) => drop(ready_sender.send(Ok(Handle::current()))),
                    Err(error) => return drop(ready_sender.send(Err(error))),
                }
                let _ = closed.await;
            });
            runtime.shutdown_background();
        })?;
        let runtime = ready.recv().map_err(|_| TelemetryError::Exporter("its thread ended at once".into()))??;
        Ok(Self { resource, runtime, traces, stop, pumped, _close: close, at_end: Vec::new() })
    }

    fn end(self) -> Option<Report> {
        let until = Instant::now() + END_WITHIN;
        self.stop.send_replace(Some(until));
        let (flushed, all_flushed) = mpsc::channel::<()>();
        for flush in self.at_end {
            let flushed = flushed.clone();
            let left = until.saturating_duration_since(Instant::now());
            std::thread::spawn(move || {
                flush(left);
                drop(flushed);
            });
        }
        drop(flushed);
        // Both end with a closed channel, or with the time.
        let _ = all_flushed.recv_timeout(until.saturating_duration_since(Instant::now()));
        let _ = self.pumped.recv_timeout(until.saturating_duration_since(Instant::now()));
        let traces = self.traces?;
        activate(None);
        Some(traces.outbox.report())
    }
}

/// Starts what sends spans, where they are sent.
fn start_pump(
    pump: Option<(settings::Destination, Pump)>,
    resource: &Resource,
    stopped: watch::Receiver<Option<Instant>>,
    pumped: mpsc::Sender<()>,
) -> Result<(), TelemetryError> {
    let Some((destination, pump)) = pump else { return Ok(()) };
    let mut exporter = exporter::spans(&destination, Handle::current())?;
    exporter.set_resource(resource);
    tokio::spawn(async move {
        pump.run(exporter, stopped).await;
        drop(pumped);
    });
    Ok(())
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("folgore")
        .with_version(env!("CARGO_PKG_VERSION"))
        .with_schema_url(names::SCHEMA)
        .build()
}
