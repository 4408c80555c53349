//! What the environment asks for: the `OTEL_*` variables of the OpenTelemetry specification. Headers are read by the exporter
//! itself; here is what decides whether, where, how and how much.

use std::{str::FromStr, time::Duration};

use super::TelemetryError;
use crate::TraceContext;

/// A stream of telemetry with variables of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Numbers.
    Metrics,
}

impl Signal {
    /// The name in variables.
    fn name(self) -> &'static str {
        match self {
            Signal::Traces => "TRACES",
            Signal::Metrics => "METRICS",
        }
    }
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Protobuf over HTTP/1.1.
    Http,
    /// gRPC.
    Grpc,
}

/// Where and how one signal is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Address, with the signal's path where the specification adds one.
    pub endpoint: String,
    /// How.
    pub protocol: Protocol,
    /// Longest that one export may take.
    pub timeout: Duration,
}

/// Which samples are traced. A pure function of the trace, so that processes with the same settings agree without talking.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Share of the traces.
    pub ratio: f64,
    /// A sender that did not trace is followed. One that did is not believed beyond our own ratio.
    pub follows_parent: bool,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { ratio: 1.0, follows_parent: true }
    }
}

impl Sampler {
    /// True if spans of `context` are exported.
    pub fn takes(&self, context: &TraceContext) -> bool {
        self.takes_trace(context.trace_bytes()) && (context.is_sampled() || !self.follows_parent)
    }

    /// True if the trace is in our share.
    pub fn takes_trace(&self, trace: &[u8; 16]) -> bool {
        // The rule of the SDKs: 63 bits of the id against the ratio.
        let low = u64::from_be_bytes(std::array::from_fn(|i| trace[8 + i])) >> 1;
        self.ratio >= 1.0 || low < (self.ratio * (1u64 << 63) as f64) as u64
    }
}

/// How spans are gathered before they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Spans that may wait; further ones are dropped and counted.
    pub queue: usize,
    /// Spans of one export.
    pub batch: usize,
    /// Longest that a span waits for others.
    pub delay: Duration,
}

impl Default for Batching {
    fn default() -> Self {
        Self { queue: 8192, batch: 512, delay: Duration::from_secs(5) }
    }
}

/// Shortest time between two exports of metrics.
const METRICS_EVERY_MIN: Duration = Duration::from_millis(100);

/// All of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// None: no spans.
    pub traces: Option<Destination>,
    /// None: no metrics over OTLP.
    pub metrics: Option<Destination>,
    /// Between two exports of metrics; none: a minute.
    pub metrics_every: Option<Duration>,
    /// Which traces.
    pub sampler: Sampler,
    /// How spans are gathered.
    pub batching: Batching,
}

impl Settings {
    /// What the variables of this process say.
    pub fn from_env() -> Result<Self, TelemetryError> {
        Self::read(|name| std::env::var(name).ok())
    }

    /// What `variables` say; an empty one counts as unset, as the specification has it.
    pub fn read(variables: impl Fn(&str) -> Option<String>) -> Result<Self, TelemetryError> {
        let get = |name: &str| variables(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        if get("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
            return Ok(Self::default());
        }
        let usual = Batching::default();
        let batch = number(&get, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE")?.unwrap_or(usual.batch).max(1);
        let every: Option<u64> = number(&get, "OTEL_METRIC_EXPORT_INTERVAL")?;
        let delay: Option<u64> = number(&get, "OTEL_BSP_SCHEDULE_DELAY")?;
        Ok(Self {
            traces: destination(&get, Signal::Traces)?,
            metrics: destination(&get, Signal::Metrics)?,
            metrics_every: every.map(|ms| Duration::from_millis(ms).max(METRICS_EVERY_MIN)),
            sampler: sampler(&get)?,
            batching: Batching {
                queue: number(&get, "OTEL_BSP_MAX_QUEUE_SIZE")?.unwrap_or(usual.queue).max(batch),
                batch,
                delay: delay.map_or(usual.delay, Duration::from_millis),
            },
        })
    }
}

type Get<'a> = &'a dyn Fn(&str) -> Option<String>;

fn destination(get: Get<'_>, signal: Signal) -> Result<Option<Destination>, TelemetryError> {
    if get(&format!("OTEL_{}_EXPORTER", signal.name())).is_some_and(|v| v == "none") {
        return Ok(None);
    }
    // The signal's own variable wins over the one for all signals.
    let either = |what: &str| {
        let own = format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.name());
        let all = format!("OTEL_EXPORTER_OTLP_{what}");
        get(&own).map(|value| (own, value)).or_else(|| get(&all).map(|value| (all, value)))
    };
    let Some((given_in, mut endpoint)) = either("ENDPOINT") else { return Ok(None) };
    let protocol = match either("PROTOCOL") {
        None => Protocol::Http,
        Some((_, value)) if value == "http/protobuf" => Protocol::Http,
        Some((_, value)) if value == "grpc" => Protocol::Grpc,
        Some((name, got)) => return Err(TelemetryError::Variable { name, expected: "grpc or http/protobuf", got }),
    };
    // An endpoint for all signals is a base; one of its own is the whole address.
    if protocol == Protocol::Http && given_in == "OTEL_EXPORTER_OTLP_ENDPOINT" {
        endpoint = format!("{}/v1/{}", endpoint.trim_end_matches('/'), signal.name().to_lowercase());
    }
    let timeout = match either("TIMEOUT") {
        None => 10_000,
        Some((name, got)) => {
            got.parse().map_err(|_| TelemetryError::Variable { name, expected: "milliseconds", got })?
        }
    };
    Ok(Some(Destination { endpoint, protocol, timeout: Duration::from_millis(timeout) }))
}

fn sampler(get: Get<'_>) -> Result<Sampler, TelemetryError> {
    let name = "OTEL_TRACES_SAMPLER";
    let Some(asked) = get(name) else { return Ok(Sampler::default()) };
    let (follows_parent, kind) = match asked.strip_prefix("parentbased_") {
        Some(kind) => (true, kind),
        None => (false, asked.as_str()),
    };
    let ratio = match kind {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => number(get, "OTEL_TRACES_SAMPLER_ARG")?.unwrap_or(1.0),
        _ => {
            let expected = "always_on, always_off or traceidratio, or one of them after parentbased_";
            return Err(TelemetryError::Variable { name: name.into(), expected, got: asked });
        }
    };
    if !(0.0..=1.0).contains(&ratio) {
        let (name, got) = ("OTEL_TRACES_SAMPLER_ARG".to_owned(), ratio.to_string());
        return Err(TelemetryError::Variable { name, expected: "a share from 0 to 1", got });
    }
    Ok(Sampler { ratio, follows_parent })
}

fn number<T: FromStr>(get: Get<'_>, name: &str) -> Result<Option<T>, TelemetryError> {
    let Some(got) = get(name) else { return Ok(None) };
    match got.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(TelemetryError::Variable { name: name.to_owned(), expected: "a number", got }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[(&str, &str)]) -> Result<Settings, TelemetryError> {
        Settings::read(|name| given.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn off_without_an_endpoint_or_when_told_so() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert_eq!(read(&[]).unwrap(), Settings::default());
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).unwrap().traces, None);
        assert_eq!(read(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]).unwrap(), Settings::default());
        let no_traces = read(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]).unwrap();
        assert_eq!((no_traces.traces, no_traces.metrics.is_some()), (None, true));
    }

    #[test]
    fn a_signals_own_variables_win() {
        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "1"),
        ])
        .unwrap();
        let timeout = Duration::from_millis(250);
        let traces = Destination { endpoint: "http://b:4317".into(), protocol: Protocol::Grpc, timeout };
        let metrics = Destination { endpoint: "http://a:4318/v1/metrics".into(), protocol: Protocol::Http, timeout };
        assert_eq!((settings.traces, settings.metrics), (Some(traces), Some(metrics)));
        assert_eq!(settings.batching.queue, settings.batching.batch, "a queue holds a batch at least");
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318");
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
        ] {
            let error = read(&[endpoint, (name, value)]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        let ratio = [endpoint, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "1.5")];
        assert!(read(&ratio).unwrap_err().to_string().contains("OTEL_TRACES_SAMPLER_ARG"));
    }

    #[test]
    fn a_share_is_of_traces_and_a_peer_cannot_raise_it() {
        let sampler = |kind: &str| {
            let given = [("OTEL_TRACES_SAMPLER", kind), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
            read(&given).unwrap().sampler
        };
        let contexts: Vec<_> = (0..400).map(|i| TraceContext::root("run", &format!("g{i}.0.0"))).collect();
        let taken = |sampler: Sampler| contexts.iter().filter(|c| sampler.takes(c)).count();
        assert!((50..150).contains(&taken(sampler("traceidratio"))), "{}", taken(sampler("traceidratio")));
        assert_eq!(taken(sampler("parentbased_traceidratio")), taken(sampler("traceidratio")));
        assert_eq!((taken(sampler("always_on")), taken(sampler("always_off"))), (400, 0));
        let silent = TraceContext::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").unwrap();
        assert!(sampler("always_on").takes(&silent) && !sampler("parentbased_always_on").takes(&silent));
        assert_eq!(silent.traceparent(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
    }
}
