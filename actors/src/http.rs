//! Posts JSON to an address and reads what comes back, within bounds.

use std::time::Duration;

pub use bytes::Bytes;
pub use http::{HeaderMap, HeaderName, HeaderValue, header};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

/// Bytes of a refusal that an error shows.
const SHOWN: usize = 120;

/// Longest wait for a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct PostError {
    /// What happened.
    pub reason: String,
    /// True if another attempt may go better.
    pub passing: bool,
}

impl PostError {
    fn passing(reason: String) -> Self {
        Self { reason, passing: true }
    }

    fn lasting(reason: String) -> Self {
        Self { reason, passing: false }
    }
}

/// A client for one address that keeps its connections. It follows no redirects, and its caller keeps the deadline.
pub struct Poster {
    uri: Uri,
    client: Connected,
}

enum Connected {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl Poster {
    /// A client for `url`. Nothing is connected yet.
    ///
    /// # Errors
    /// If `url` is no address, or begins with https where the system has no certificates to trust.
    pub fn new(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|e| format!("url {url:?}: {e}"))?;
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_WITHIN));
        let builder = Client::builder(TokioExecutor::new());
        if uri.scheme_str() != Some("https") {
            return Ok(Self { uri, client: Connected::Plain(builder.build(tcp)) });
        }
        tcp.enforce_http(false);
        let tls = hyper_rustls::HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|e| format!("the system's certificates cannot be read: {e}"))?;
        let connector = tls.https_only().enable_http1().wrap_connector(tcp);
        Ok(Self { uri, client: Connected::Tls(builder.build(connector)) })
    }

    /// Posts `body` as JSON and gives the reply's body, of at most `most` bytes.
    ///
    /// # Errors
    /// If there is no reply, it is too long, or its status is not 200; 408, 429 and 5xx may pass.
    pub async fn post(&self, headers: &HeaderMap, body: Vec<u8>, most: usize) -> Result<Bytes, PostError> {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers.clone();
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json.clone());
        request.headers_mut().insert(header::ACCEPT, json);
        let reply = match &self.client {
            Connected::Plain(client) => client.request(request),
            Connected::Tls(client) => client.request(request),
        };
        let reply = reply.await.map_err(|e| PostError::passing(causes(&e)))?;
        let status = reply.status();
        let body = Limited::new(reply.into_body(), most).collect().await;
        let body = body.map_err(|e| PostError::passing(format!("the reply cannot be read: {e}")))?.to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let reason = format!("status {status}, {:?}", shown(&body));
        let passing =
            status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        Err(if passing { PostError::passing(reason) } else { PostError::lasting(reason) })
    }
}

/// An error with its causes, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The beginning of `text` on one line.
fn shown(text: &[u8]) -> String {
    let line = String::from_utf8_lossy(&text[..text.len().min(SHOWN)]).replace(char::is_control, " ");
    if text.len() > SHOWN { format!("{line}...") } else { line }
}
