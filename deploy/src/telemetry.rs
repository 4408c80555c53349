//! Telemetry of one process: begun as the environment says, told about at the end.

use std::fmt;

use folgore_actors::{Telemetry, TraceContext, telemetry::Identity};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields, MakeWriter,
        format::{Format, Full, Writer},
    },
    registry::LookupSpan,
};

/// Begins what the `OTEL_*` variables ask for. What they ask for and cannot have is told; the work goes on without.
pub fn start(run: &str, role: &str, worker: &str) -> Telemetry {
    let who = Identity { run: run.to_owned(), role: role.to_owned(), worker: worker.to_owned() };
    Telemetry::start(&who).unwrap_or_else(|error| {
        eprintln!("warning: telemetry is off: {error}");
        Telemetry::off()
    })
}

/// Sends what waits, for two seconds at most, and says what was lost.
pub fn end(telemetry: Telemetry) {
    let Some(report) = telemetry.end() else { return };
    tracing::info!(exported = report.exported, lost = report.lost, "spans");
    if report.lost > 0 {
        let all = report.exported + report.lost;
        eprintln!("warning: telemetry: {} of {all} spans were not taken by the receiver", report.lost);
    }
}

/// Sends logs of this process to `writer`: what `RUST_LOG` asks for, or `usual`.
pub fn log_to<W>(writer: W, usual: &str)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| usual.into());
    // A log that cannot be written (a full disk) is not told beside the error that ends the run for the same reason.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .log_internal_errors(false)
        .event_format(Traced(Format::default().with_ansi(false)))
        .with_writer(writer)
        .init();
}

/// The usual lines, with the trace that they belong to at their end.
struct Traced(Format<Full>);

impl<S, N> FormatEvent<S, N> for Traced
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(trace) = TraceContext::current() else { return self.0.format_event(context, writer, event) };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writeln!(writer, "{} trace_id={}", line.trim_end(), trace.trace_id())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_shows_the_trace_that_it_belongs_to() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .event_format(Traced(Format::default().with_ansi(false)))
            .with_writer(move || writer.clone())
            .finish();
        let trace = TraceContext::root("run", "g1.0.0");
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("nobody's");
            trace.scope_blocking(|| tracing::info!(seat = 3, "a sample's"));
        });
        let said = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].ends_with("nobody's"), "{said}");
        assert!(lines[1].ends_with(&format!("a sample's seat=3 trace_id={}", trace.trace_id())), "{said}");
    }
}
