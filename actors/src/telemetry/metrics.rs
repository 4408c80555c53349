//! Numbers over OTLP: the values of a table are read when it is time to send them, and once more at the end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Meter, MeterProvider as _},
};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    metrics::{PeriodicReader, SdkMeterProvider, Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
};

use super::{Telemetry, TelemetryError, exporter, scope};
use crate::metrics::{Kind, Metric, Sample};

/// Gives the values of a table as they are.
type Read = Arc<dyn Fn() -> Vec<Sample> + Send + Sync>;

impl Telemetry {
    /// Sends the values that `read` gives for `table` as often as the environment says. Nothing where it asks for no metrics.
    ///
    /// # Errors
    /// If the exporter cannot be made.
    pub fn export_metrics<'a>(
        &mut self,
        table: impl IntoIterator<Item = &'a Metric>,
        read: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) -> Result<(), TelemetryError> {
        let (Some(destination), Some((resource, runtime))) = (self.settings().metrics.clone(), self.place()) else {
            return Ok(());
        };
        let exporter = Told { exporter: exporter::metrics(&destination, runtime)?, well: AtomicBool::new(true) };
        let reader =
            PeriodicReader::builder(exporter).with_interval(self.settings().metrics_every.unwrap_or_default()).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).with_resource(resource).build();
        let (meter, read) = (provider.meter_with_scope(scope()), Arc::new(read) as Read);
        for (at, metric) in table.into_iter().enumerate() {
            instrument(&meter, at, metric, &read);
        }
        // failures were told of as they came
        self.at_end(move |left| drop(provider.shutdown_with_timeout(left)));
        Ok(())
    }
}

/// One instrument, for the metric at place `at` of the table.
fn instrument(meter: &Meter, at: usize, metric: &Metric, read: &Read) {
    let (name, read) = (metric.name.clone(), read.clone());
    let observe = move |into: &dyn AsyncInstrument<f64>| {
        for sample in read().iter().filter(|sample| sample.metric == at) {
            let labels: Vec<KeyValue> =
                sample.labels.iter().map(|(name, value)| KeyValue::new(*name, value.clone())).collect();
            into.observe(sample.value, &labels);
        }
    };
    // what was built lives in the provider
    match metric.kind {
        Kind::Gauge => {
            let builder = meter.f64_observable_gauge(name).with_unit(metric.unit).with_description(metric.help);
            let _ = builder.with_callback(observe).build();
        }
        Kind::Counter => {
            let builder = meter.f64_observable_counter(name).with_unit(metric.unit).with_description(metric.help);
            let _ = builder.with_callback(observe).build();
        }
    }
}

/// Tells of a receiver that takes nothing, once; values are sent again as they are then, so none is lost for good.
struct Told {
    exporter: MetricExporter,
    well: AtomicBool,
}

impl PushMetricExporter for Told {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let sent = self.exporter.export(metrics).await;
        let was_well = self.well.swap(sent.is_ok(), Relaxed);
        if let Err(error) = sent.as_ref().map_err(|error| error.to_string()) {
            if was_well {
                tracing::warn!(error, "metrics are not taken");
            } else {
                tracing::debug!(error, "metrics are not taken");
            }
        }
        sent
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
