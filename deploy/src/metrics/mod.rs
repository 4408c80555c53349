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
