//! OTLP exporters of the protocol that the environment asks for.
//!
//! All I/O happens on the runtime of the telemetry's own thread: the SDK exports from threads without a runtime, where the
//! clients of hyper and tonic cannot run, and a runtime of the product could be the one that waits for the export.

use std::{future::Future, pin::Pin, sync::Arc};

use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response, hyper::HyperClient};
use opentelemetry_otlp::{
    MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
    tonic_types::transport::ClientTlsConfig,
};
use tokio::runtime::Handle;

use super::{
    TelemetryError,
    settings::{Destination, Protocol},
};

/// An HTTP client that any thread may use.
#[derive(Clone, Debug)]
pub struct OwnRuntime {
    runtime: Handle,
    client: Arc<dyn HttpClient>,
}

impl OwnRuntime {
    /// A client for `destination` on `runtime`.
    ///
    /// # Errors
    /// If it is to speak TLS and this machine has no root certificates.
    pub fn new(destination: &Destination, runtime: Handle) -> Result<Self, TelemetryError> {
        let client: Arc<dyn HttpClient> = if is_https(destination) {
            let https = HttpsConnectorBuilder::new().with_native_roots();
            let https = https.map_err(|error| TelemetryError::Exporter(format!("root certificates: {error}")))?;
            let connector = https.https_or_http().enable_http1().build();
            Arc::new(HyperClient::new(connector, destination.timeout, None))
        } else {
            Arc::new(HyperClient::with_default_connector(destination.timeout, None))
        };
        Ok(Self { runtime, client })
    }
}

fn is_https(destination: &Destination) -> bool {
    destination.endpoint.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

impl HttpClient for OwnRuntime {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move { client.send_bytes(request).await });
        Box::pin(async move { sent.await? })
    }
}

/// One exporter of each kind, built alike.
macro_rules! build {
    ($exporter:ident, $destination:expr, $runtime:expr) => {{
        let Destination { endpoint, timeout, .. } = $destination;
        let built = match $destination.protocol {
            Protocol::Http => $exporter::builder()
                .with_http()
                .with_http_client(OwnRuntime::new($destination, $runtime)?)
                .with_endpoint(endpoint)
                .with_timeout(*timeout)
                .build(),
            Protocol::Grpc => {
                // its channel works where it is made
                let _there = $runtime.enter();
                let builder = $exporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(*timeout);
                if is_https($destination) {
                    builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots())
                } else {
                    builder
                }
                .build()
            }
        };
        built.map_err(|error| TelemetryError::Exporter(error.to_string()))
    }};
}

/// What sends spans to `destination`.
pub fn spans(destination: &Destination, runtime: Handle) -> Result<SpanExporter, TelemetryError> {
    build!(SpanExporter, destination, runtime)
}

/// What sends metrics to `destination`.
pub fn metrics(destination: &Destination, runtime: Handle) -> Result<MetricExporter, TelemetryError> {
    build!(MetricExporter, destination, runtime)
}
