//! A receiver of OTLP for tests: takes spans and numbers over HTTP or gRPC, or misbehaves.
#![allow(dead_code, reason = "each test target uses its own part")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{metric, number_data_point},
    trace::v1::Span,
};
use prost::Message as _;

/// What a receiver does with what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Takes it.
    Take,
    /// Never answers.
    Hang,
    /// Closes the connection instead of an answer.
    Close,
    /// Says 503.
    Unavailable,
}

/// One span with who sent it.
#[derive(Clone, Debug)]
pub struct Got {
    /// The sender's resource, rendered.
    pub resource: Vec<(String, String)>,
    /// Schema of the names.
    pub schema: String,
    /// The span.
    pub span: Span,
}

impl Got {
    /// An attribute of the span, rendered.
    pub fn attribute(&self, name: &str) -> Option<String> {
        find(&render(&self.span.attributes), name)
    }

    /// An attribute of the sender, rendered.
    pub fn sender(&self, name: &str) -> Option<String> {
        find(&self.resource, name)
    }

    /// Trace id, hexadecimal.
    pub fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    /// Span id, hexadecimal.
    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// Id of the span that it is a part of, hexadecimal; empty for a root.
    pub fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }
}

/// One value of a metric.
#[derive(Clone, Debug)]
pub struct Number {
    /// Name of the metric.
    pub name: String,
    /// True for a counter.
    pub counter: bool,
    /// Labels, rendered.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: f64,
}

/// What was taken.
#[derive(Debug, Default)]
struct Taken {
    spans: Vec<Got>,
    /// Those of the last export.
    numbers: Vec<Number>,
}

/// The receiver; its threads end with the process.
pub struct Receiver {
    /// Where it listens.
    pub url: String,
    got: Arc<Mutex<Taken>>,
    asked: Arc<AtomicU64>,
}

impl Receiver {
    /// One that speaks HTTP.
    pub fn http(manner: Manner) -> Self {
        let (listener, receiver) = Self::listen();
        let (got, asked) = (receiver.got.clone(), receiver.asked.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (got, asked) = (got.clone(), asked.clone());
                thread::spawn(move || while serve(&stream, manner, &got, &asked).is_some() {});
            }
        });
        receiver
    }

    /// One that speaks gRPC, and takes what it is sent.
    pub fn grpc() -> Self {
        let (listener, receiver) = Self::listen();
        listener.set_nonblocking(true).unwrap();
        let got = receiver.got.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve_grpc(stream, got.clone()));
                }
            });
        });
        receiver
    }

    fn listen() -> (TcpListener, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (listener, Self { url, got: Arc::default(), asked: Arc::default() })
    }

    /// The spans so far.
    pub fn spans(&self) -> Vec<Got> {
        self.got.lock().unwrap().spans.clone()
    }

    /// The numbers of the last export.
    pub fn numbers(&self) -> Vec<Number> {
        self.got.lock().unwrap().numbers.clone()
    }

    /// How often it was sent something, taken or not.
    pub fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }

    /// The spans, once `enough` says so.
    #[track_caller]
    pub fn wait_for(&self, what: &str, enough: impl Fn(&[Got]) -> bool) -> Vec<Got> {
        let begin = Instant::now();
        loop {
            let spans = self.spans();
            if enough(&spans) {
                return spans;
            }
            let names: Vec<&str> = spans.iter().map(|got| got.span.name.as_str()).collect();
            assert!(begin.elapsed() < Duration::from_secs(120), "{what}: there is {names:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// One request; none when the connection is over.
fn serve(stream: &TcpStream, manner: Manner, got: &Mutex<Taken>, asked: &AtomicU64) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length, mut path) = (String::new(), 0, String::new());
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if path.is_empty() {
            path = line.split(' ').nth(1)?.to_owned();
        }
        if let Some(("content-length", value)) = line.trim().to_lowercase().split_once(": ") {
            length = value.parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    asked.fetch_add(1, Relaxed);
    let mut writer = stream;
    match manner {
        Manner::Take => {
            take(&path, &body, got);
            writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()
        }
        Manner::Unavailable => writer.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").ok(),
        Manner::Close => None,
        Manner::Hang => loop {
            thread::sleep(Duration::from_secs(3600));
        },
    }
}

async fn serve_grpc(stream: tokio::net::TcpStream, got: Arc<Mutex<Taken>>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let got = got.clone();
        tokio::spawn(async move {
            let path = request.uri().path().to_owned();
            let services = ["trace.v1.TraceService", "metrics.v1.MetricsService"];
            assert!(services.iter().any(|s| path == format!("/opentelemetry.proto.collector.{s}/Export")), "{path}");
            let (mut incoming, mut body) = (request.into_body(), Vec::new());
            while let Some(Ok(chunk)) = incoming.data().await {
                incoming.flow_control().release_capacity(chunk.len()).unwrap();
                body.extend_from_slice(&chunk);
            }
            // One message: whether it is compressed, its length, itself.
            assert_eq!(body[0], 0);
            take(&path, &body[5..], &got);
            let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut answer = respond.send_response(head, false).unwrap();
            answer.send_data(bytes::Bytes::from_static(&[0; 5]), false).unwrap();
            let mut end = http::HeaderMap::new();
            end.insert("grpc-status", http::HeaderValue::from_static("0"));
            answer.send_trailers(end).unwrap();
        });
    }
}

fn take(path: &str, body: &[u8], got: &Mutex<Taken>) {
    if path.contains("metrics") {
        got.lock().unwrap().numbers = numbers(ExportMetricsServiceRequest::decode(body).unwrap());
        return;
    }
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let mut got = got.lock().unwrap();
    for resource_spans in request.resource_spans {
        let resource = render(&resource_spans.resource.unwrap_or_default().attributes);
        for scope in resource_spans.scope_spans {
            let schema = scope.schema_url;
            got.spans.extend(scope.spans.into_iter().map(|span| Got {
                resource: resource.clone(),
                schema: schema.clone(),
                span,
            }));
        }
    }
}

fn numbers(request: ExportMetricsServiceRequest) -> Vec<Number> {
    let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
    let mut found = Vec::new();
    for metric in scopes.flat_map(|scope| scope.metrics) {
        let (counter, points) = match metric.data {
            Some(metric::Data::Gauge(gauge)) => (false, gauge.data_points),
            Some(metric::Data::Sum(sum)) => (sum.is_monotonic, sum.data_points),
            other => panic!("{}: {other:?}", metric.name),
        };
        for point in points {
            let Some(number_data_point::Value::AsDouble(value)) = point.value else { panic!("{}", metric.name) };
            found.push(Number { name: metric.name.clone(), counter, labels: render(&point.attributes), value });
        }
    }
    found
}

/// Names with rendered values.
pub fn render(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let value = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(value) => text(value),
        None => String::new(),
    };
    attributes.iter().map(|pair| (pair.key.clone(), value(pair))).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::StringValue(text) => text.clone(),
        Value::BoolValue(value) => value.to_string(),
        Value::IntValue(value) => value.to_string(),
        Value::DoubleValue(value) => value.to_string(),
        Value::ArrayValue(array) => {
            let items = array.values.iter().filter_map(|value| value.value.as_ref());
            items.map(text).collect::<Vec<_>>().join(",")
        }
        other => format!("{other:?}"),
    }
}

fn find(pairs: &[(String, String)], name: &str) -> Option<String> {
    pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
}

/// As ids are written.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
