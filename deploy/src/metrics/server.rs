//! Where the numbers can be read: `GET /metrics` at an address that is asked for. A reader that sends nonsense, too much, too
//! slowly, or comes too often is cut off or waits; the run does not notice.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr, TcpListener as Listener},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use folgore_actors::{BoxFuture, Context, Service, ServiceError, SupervisorError, SupervisorHandle};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Collector, text};

/// Readers at once; further ones wait to be let in.
const READERS_MAX: usize = 16;
/// How long a reader may take to say what it wants, and altogether.
const HEADERS_WITHIN: Duration = Duration::from_secs(3);
const WHOLE_WITHIN: Duration = Duration::from_secs(10);
/// Bytes and headers of a request.
const REQUEST_MAX: usize = 8192;
const HEADERS_MAX: usize = 64;
/// How often values are renewed for those who do not ask for them.
const RENEWED_EVERY: Duration = Duration::from_secs(1);

/// An address that is listened at.
#[derive(Clone)]
pub struct Door(Arc<Listener>);

impl Door {
    /// Opens `address`; port 0 is any that is free.
    pub fn open(address: IpAddr, port: u16) -> Result<Self> {
        let at = SocketAddr::new(address, port);
        let listener = Listener::bind(at).with_context(|| format!("metrics at {at}"))?;
        listener.set_nonblocking(true).with_context(|| format!("metrics at {at}"))?;
        Ok(Self(Arc::new(listener)))
    }

    /// Where it is, for people.
    pub fn url(&self) -> Result<String> {
        Ok(format!("http://{}/metrics", self.0.local_addr()?))
    }
}

/// The service: keeps the collector's values fresh, and shows them at its door if it has one.
pub struct Metrics {
    /// What is shown.
    pub collector: Arc<Collector>,
    /// Whose services.
    pub supervisor: SupervisorHandle,
    /// Where; none where only telemetry asks.
    pub door: Option<Door>,
}

impl Metrics {
    /// Starts the service among those of `supervisor`. Where they are stopping already there is nothing to show, and somebody
    /// else has the reason to tell.
    pub async fn start(collector: &Arc<Collector>, supervisor: &SupervisorHandle, door: Option<&Door>) -> Result<()> {
        let (collector, of, door) = (collector.clone(), supervisor.clone(), door.cloned());
        let make = move || -> Box<dyn Service> {
            Box::new(Self { collector: collector.clone(), supervisor: of.clone(), door: door.clone() })
        };
        match supervisor.spawn("metrics", make).await {
            Err(SupervisorError::Stopping { .. }) => Ok(()),
            started => Ok(started?),
        }
    }
}

impl Service for Metrics {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        let Self { collector, supervisor, door } = *self;
        let reader = Arc::new(Reader { collector, supervisor });
        Box::pin(async move {
            let serving = async {
                match door {
                    None => std::future::pending().await,
                    Some(door) => serve(&door, &reader).await,
                }
            };
            tokio::select! {
                // the last look is what telemetry sends at the end
                () = context.shutdown.stopping() => reader.renew().await,
                () = reader.renew_often() => {}
                // what cannot be read is no reason to end a run
                Err(error) = serving => {
                    tracing::error!(%error, "metrics cannot be read any more");
                    context.shutdown.stopping().await;
                }
            }
            Ok(())
        })
    }
}

/// What a request sees.
struct Reader {
    collector: Arc<Collector>,
    supervisor: SupervisorHandle,
}

impl Reader {
    /// Looks at the services; one that does not answer, because the run has ended, is shown as it was.
    async fn renew(&self) {
        if let Ok(services) = self.supervisor.observe().await {
            self.collector.observed(services);
        }
    }

    async fn renew_often(&self) {
        loop {
            self.renew().await;
            sleep(RENEWED_EVERY).await;
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (status, kind, body) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => {
                self.renew().await;
                (StatusCode::OK, text::CONTENT_TYPE, text::encode(&self.collector.read()))
            }
            (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".into()),
            _ => (StatusCode::NOT_FOUND, "text/plain", "metrics are at /metrics\n".into()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
        }
        Ok(response)
    }
}

/// Lets readers in until the door breaks.
async fn serve(door: &Door, reader: &Arc<Reader>) -> std::io::Result<Infallible> {
    let listener = TcpListener::from_std(door.0.try_clone()?)?;
    let mut readers = JoinSet::new();
    loop {
        while readers.len() >= READERS_MAX {
            readers.join_next().await;
        }
        tokio::select! {
            Some(_) = readers.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(readers.spawn(attend(stream, reader.clone()))),
                // the process may have no file handle to spare just now
                Err(error) => {
                    tracing::debug!(%error, "a reader of metrics was not let in");
                    sleep(RENEWED_EVERY).await;
                }
            }
        }
    }
}

/// Answers one reader.
async fn attend(stream: TcpStream, reader: Arc<Reader>) {
    let answer = service_fn(|request| {
        let reader = reader.clone();
        async move { reader.answer(request).await }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    http.keep_alive(false).max_buf_size(REQUEST_MAX).max_headers(HEADERS_MAX);
    let served = timeout(WHOLE_WITHIN, http.serve_connection(TokioIo::new(stream), answer)).await;
    if let Ok(Err(error)) = served {
        tracing::debug!(%error, "a reader of metrics");
    }
}
