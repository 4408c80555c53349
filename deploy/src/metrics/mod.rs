//! What a process shows of itself in numbers, to Prometheus and over OpenTelemetry, under the same names.
//!
//! | file | what it is for |
//! |---|---|
//! | [`table`] | every metric with its kind, unit, help and source |
//! | [`collector`] | values for the table, from what is there already: the lines of `metrics.jsonl` and the status of each service |
//! | [`text`] | Prometheus' text format |
//! | [`server`] | the address where it can be read, and the service that keeps the values fresh |

pub mod collector;
pub mod server;
pub mod table;
pub mod text;

pub use collector::Collector;
pub use server::{Door, Metrics};

use std::sync::Arc;

use folgore_actors::Telemetry;

/// Sends the numbers over OTLP too, where the environment asks for that; true if it does. What it asks for and cannot have is
/// told; the work goes on without.
pub fn send(telemetry: &mut Telemetry, collector: &Arc<Collector>) -> bool {
    let read = collector.clone();
    if let Err(error) = telemetry.export_metrics(table::TABLE.iter().map(|row| &row.metric), move || read.read()) {
        eprintln!("warning: no metrics over OTLP: {error}");
        return false;
    }
    telemetry.settings().metrics.is_some()
}
