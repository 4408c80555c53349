//! `folgore serve --retriever`: finds passages for other software, with the interface of Search-R1's server.
//!
//! `POST /retrieve` takes `{"queries": [..], "topk": k, "return_scores": true}` and answers `{"result": [[..], ..]}`, a list for each
//! query: documents, or with scores `{"document": .., "score": ..}`. What cannot be answered is `{"error": ..}` with a status.

use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use folgore_actors::{Shutdown, on_ctrl_c};
use folgore_config::RetrieverSection;
use folgore_protocol::{Passages, Search};
use folgore_retriever::{
    Bounds, Host, SearchError,
    remote::{Retrieve, Retrieved, document},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    cli::{ConfigArgs, ServeArgs},
    commands::train::load_config,
    retriever, telemetry,
};

/// Where requests go.
const PATH: &str = "/retrieve";
/// Connections at once; further ones wait to be let in.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to begin a request, and to send its body.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of a request's body.
const BODY_MAX: usize = 8 << 20;
/// Queries of a request.
const QUERIES_MAX: usize = 4096;
/// Before another connection is tried, where the process has no file handle to spare.
const REST: Duration = Duration::from_millis(200);

/// Runs the command.
pub fn run(args: ServeArgs) -> Result<()> {
    if !args.retriever {
        bail!("say what to serve: --retriever");
    }
    telemetry::log_to(std::io::stderr, "warn,folgore=info");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(serve(&args));
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

async fn serve(args: &ServeArgs) -> Result<()> {
    let shutdown = Shutdown::new();
    on_ctrl_c(shutdown.clone(), |_| {})?;
    let section = section(args)?;
    let opening = section.clone();
    let opened = tokio::task::spawn_blocking(move || retriever::build(&opening));
    // an encoder may have to be downloaded: whoever wants to leave does not wait for it
    let Some(found_by) = shutdown.unless_stopping(opened).await else { return Ok(()) };
    let found_by = found_by??;
    let bounds = Bounds { waiting: QUERIES_MAX * CONNECTIONS_MAX, ..retriever::bounds(&section) };
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("--listen {}", args.listen))?;
    println!("{} at http://{}{PATH}", found_by.name(), listener.local_addr()?);
    let desk = Arc::new(Desk { host: Arc::new(Host::new(found_by, bounds)), bounds, topk: args.topk });
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        tokio::select! {
            () = shutdown.stopping() => return Ok(()),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(attend(stream, desk.clone(), shutdown.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not let in");
                    sleep(REST).await;
                }
            }
        }
    }
}

/// The section `retriever` of what was given.
fn section(args: &ServeArgs) -> Result<RetrieverSection> {
    let mut given = args.given.clone();
    given.extend(args.index.iter().map(|index| format!("retriever.index={:?}", index.display().to_string())));
    Ok(load_config(&ConfigArgs { given, ..ConfigArgs::default() })?.retriever)
}

/// Answers one client, for as long as it keeps its connection.
async fn attend(stream: TcpStream, desk: Arc<Desk>, shutdown: Shutdown) {
    let answer = service_fn(|request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(desk.answer(request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    let served = shutdown.unless_stopping(http.serve_connection(TokioIo::new(stream), answer)).await;
    if let Some(Err(error)) = served {
        tracing::debug!(%error, "a client");
    }
}

/// What requests are answered from.
struct Desk {
    host: Arc<Host>,
    bounds: Bounds,
    /// Passages where a request does not say how many.
    topk: u32,
}

/// Why a request is not answered.
type Refusal = (StatusCode, String);

fn refuse<T>(status: StatusCode, reason: impl Into<String>) -> Result<T, Refusal> {
    Err((status, reason.into()))
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, body) = match self.retrieve(request).await {
            Ok(body) => (StatusCode::OK, body),
            Err((status, reason)) => (status, json!({ "error": reason }).to_string()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }

    async fn retrieve(&self, request: Request<Incoming>) -> Result<String, Refusal> {
        match (request.method(), request.uri().path()) {
            (&Method::POST, PATH) => {}
            (_, PATH) => return refuse(StatusCode::METHOD_NOT_ALLOWED, "expected POST"),
            _ => return refuse(StatusCode::NOT_FOUND, format!("passages are at {PATH}")),
        }
        let asked = self.read(request).await?;
        let top_k = asked.topk.filter(|k| *k > 0).unwrap_or(self.topk);
        let mut result = vec![Vec::new(); asked.queries.len()];
        // all at once, so that they are asked together
        let mut searches = JoinSet::new();
        for (place, query) in asked.queries.into_iter().enumerate() {
            let host = self.host.clone();
            searches.spawn(async move { (place, host.search(&Search { query, top_k }).await) });
        }
        while let Some(searched) = searches.join_next().await {
            let (place, found) = searched.map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
            let found = found.map_err(|error| match error {
                SearchError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
                SearchError::Refused(_) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            })?;
            result[place] = listed(&found, asked.return_scores);
        }
        serde_json::to_string(&Retrieved { result }).map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
    }

    /// What a request asks, within bounds.
    async fn read(&self, request: Request<Incoming>) -> Result<Retrieve, Refusal> {
        let body = match timeout(BODY_WITHIN, Limited::new(request.into_body(), BODY_MAX).collect()).await {
            Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the body took too long"),
            Ok(Err(error)) => {
                return refuse(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body, of at most {BODY_MAX} bytes: {error}"),
                );
            }
            Ok(Ok(body)) => body.to_bytes(),
        };
        let asked: Retrieve = match serde_json::from_slice(&body) {
            Ok(asked) => asked,
            Err(error) => return refuse(StatusCode::BAD_REQUEST, error.to_string()),
        };
        let (queries, longest) = (asked.queries.len(), asked.queries.iter().map(String::len).max().unwrap_or(0));
        let most = self.bounds.passages;
        for (what, got, most) in [
            ("queries", queries, QUERIES_MAX),
            ("bytes of a query", longest, self.bounds.query_bytes),
            ("topk", asked.topk.unwrap_or(0) as usize, most as usize),
        ] {
            if got > most {
                return refuse(StatusCode::BAD_REQUEST, format!("{what}: expected at most {most}, got {got}"));
            }
        }
        Ok(asked)
    }
}

/// The list of one query.
fn listed(found: &Passages, with_scores: bool) -> Vec<Value> {
    let one = |passage| match with_scores {
        true => json!({"document": document(passage), "score": passage.score}),
        false => document(passage),
    };
    found.passages.iter().map(one).collect()
}
