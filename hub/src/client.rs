//! Asks the hub, within bounds: every wait has an end, and the token goes to the hub alone.

use std::{future::Future, sync::OnceLock, time::Duration};

use bytes::Bytes;
use folgore_config::hub::{HubName, RepoKind};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::{sleep, timeout};

use crate::{
    HubError, Patience, Settings,
    error::{Trouble, causes},
};

/// Redirects that are followed.
const REDIRECTS: usize = 8;
/// Between two attempts, even where the server wants more.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Characters of what a server says.
const WORDS: usize = 200;

/// A client of one hub.
pub(crate) struct Client {
    endpoint: String,
    origin: Option<(String, String)>,
    token: Option<HeaderValue>,
    patience: Patience,
    plain: Pool<HttpConnector, Empty<Bytes>>,
    /// Made when the first address with https comes: it needs the certificates of the system.
    tls: OnceLock<Pool<HttpsConnector<HttpConnector>, Empty<Bytes>>>,
}

/// How a request is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// What the hub itself says: a redirect that tells of the file, or leads elsewhere, is an answer.
    Head,
    /// The contents, from this byte on, wherever they are.
    Get {
        /// The first byte.
        from: u64,
    },
}

/// The beginning of an answer.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    silence: Duration,
}

impl Reply {
    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The next piece of the contents; none at the end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Trouble> {
        loop {
            let frame = timeout(self.silence, self.body.frame()).await;
            let frame = frame.map_err(|_| Trouble::Passing(format!("nothing came for {:?}", self.silence)))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(Trouble::Passing(causes(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// All of it, of at most `limit` bytes.
    pub(crate) async fn whole(mut self, place: &str, limit: usize) -> Result<Vec<u8>, Trouble> {
        let mut all = Vec::new();
        while let Some(piece) = self.piece().await? {
            if all.len() + piece.len() > limit {
                let got = format!("more than {limit} bytes");
                let place = place.to_owned();
                return Err(HubError::Untrusted { place, what: "answer:", expected: "a short one", got }.into());
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}

impl Client {
    /// A client for `settings`. Nothing is connected yet.
    pub(crate) fn new(settings: &Settings) -> Result<Self, HubError> {
        let wrong = |what: String| HubError::Settings(what);
        let uri: Uri =
            settings.endpoint.parse().map_err(|e| wrong(format!("HF_ENDPOINT {:?}: {e}", settings.endpoint)))?;
        let origin = origin(&uri);
        if origin.is_none() || uri.query().is_some() {
            return Err(wrong(format!("HF_ENDPOINT {:?}: expected http:// or https:// and a host", settings.endpoint)));
        }
        let token = settings.token.as_ref().map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| wrong("HF_TOKEN: expected a token, got a text that no header can hold".into()))?;
            value.set_sensitive(true);
            Ok(value)
        });
        Ok(Self {
            endpoint: settings.endpoint.clone(),
            origin,
            token: token.transpose()?,
            patience: settings.patience,
            plain: Pool::builder(TokioExecutor::new()).build(connector(&settings.patience)),
            tls: OnceLock::new(),
        })
    }

    /// Address of `path`, given in its parts.
    pub(crate) fn at<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Result<Uri, HubError> {
        let path: String = path.into_iter().map(|part| format!("/{}", encoded(part))).collect();
        let address = format!("{}{path}", self.endpoint);
        address.parse().map_err(|e| HubError::Settings(format!("{address}: {e}")))
    }

    /// Asks once. An answer with an error's status is an error; redirects are followed as `ask` says.
    pub(crate) async fn ask(&self, name: &HubName, file: Option<&str>, uri: &Uri, ask: Ask) -> Result<Reply, Trouble> {
        let mut uri = uri.clone();
        for _ in 0..REDIRECTS {
            let reply = self.send(&uri, ask).await?;
            if !reply.status.is_redirection() {
                return if reply.status.is_success() || reply.status == StatusCode::RANGE_NOT_SATISFIABLE {
                    Ok(reply)
                } else {
                    Err(self.refusal(name, file, &uri, &reply))
                };
            }
            let place = reply.header("location").unwrap_or_default().to_owned();
            let next = next(&uri, &place).ok_or_else(|| HubError::Untrusted {
                place: uri.to_string(),
                what: "redirect:",
                expected: "an address, not less protected than this one",
                got: place.clone(),
            })?;
            let tells = reply.headers.contains_key("x-linked-etag") || origin(&next) != origin(&uri);
            if ask == Ask::Head && tells {
                return Ok(reply);
            }
            uri = next;
        }
        Err(Trouble::Passing(format!("more than {REDIRECTS} redirects")))
    }

    async fn send(&self, uri: &Uri, ask: Ask) -> Result<Reply, Trouble> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = if ask == Ask::Head { Method::HEAD } else { Method::GET };
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("folgore/", env!("CARGO_PKG_VERSION"))));
        // sizes are those of the contents
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(token) = self.token.as_ref().filter(|_| origin(uri) == self.origin) {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        if let Ask::Get { from: from @ 1.. } = ask {
            let range = HeaderValue::from_str(&format!("bytes={from}-"));
            headers.insert(header::RANGE, range.map_err(|e| Trouble::Passing(e.to_string()))?);
        }
        let silence = self.patience.silence;
        let reply = match uri.scheme_str() {
            Some("https") => timeout(silence, self.tls()?.request(request)).await,
            _ => timeout(silence, self.plain.request(request)).await,
        };
        let reply = reply.map_err(|_| Trouble::Passing(format!("no answer within {silence:?}")))?;
        let (parts, body) = reply.map_err(|error| Trouble::Passing(causes(&error)))?.into_parts();
        Ok(Reply { status: parts.status, headers: parts.headers, body, silence })
    }

    fn tls(&self) -> Result<&Pool<HttpsConnector<HttpConnector>, Empty<Bytes>>, HubError> {
        if let Some(pool) = self.tls.get() {
            return Ok(pool);
        }
        let mut tcp = connector(&self.patience);
        tcp.enforce_http(false);
        let tls = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|e| HubError::Settings(format!("the system's certificates cannot be read: {e}")))?;
        let connector = tls.https_only().enable_http1().wrap_connector(tcp);
        Ok(self.tls.get_or_init(|| Pool::builder(TokioExecutor::new()).build(connector)))
    }

    /// What an answer from `uri` with an error's status means, about the whole repository or a file of it.
    fn refusal(&self, name: &HubName, file: Option<&str>, uri: &Uri, reply: &Reply) -> Trouble {
        let words = |said: &str| format!("; the server says: {}", said.chars().take(WORDS).collect::<String>());
        let said = reply.header("x-error-message").map(words).unwrap_or_default();
        let status = reply.status.as_u16();
        let is_own = origin(uri) == self.origin;
        if reply.status.is_server_error() || matches!(status, 408 | 429) {
            let who = if is_own { String::new() } else { format!("{}: ", host(uri)) };
            let why = format!("{who}status {status}{said}");
            return match asked_later(&reply.headers) {
                Some(after) => Trouble::Busy { why, after },
                None => Trouble::Passing(why),
            };
        }
        let code = reply.header("x-error-code").unwrap_or_default();
        // other servers know neither terms nor tokens
        let own = is_own.then(|| self.own_refusal(name, file, status, code, &said)).flatten();
        let plain = || HubError::Refused { what: name.to_string(), host: host(uri), status, said };
        Trouble::Lasting(own.unwrap_or_else(plain))
    }

    /// What the hub itself means; none if that is not known.
    fn own_refusal(&self, name: &HubName, file: Option<&str>, status: u16, code: &str, said: &str) -> Option<HubError> {
        let (repo, endpoint) = (name.repo().to_owned(), self.endpoint.clone());
        let with_token = self.token.is_some();
        Some(match (code, status) {
            ("RevisionNotFound", _) => HubError::NoRevision { repo, revision: name.revision().to_owned() },
            ("EntryNotFound", _) => self.no_file(name, file),
            ("GatedRepo", _) => self.gated(name, with_token, said),
            // a page is shown to everybody and its files are not
            ("", 401) if file.is_some() && !with_token => self.gated(name, with_token, said),
            (_, 401) if with_token && code != "RepoNotFound" => {
                HubError::Token { repo, status, page: format!("{endpoint}/settings/tokens"), said: said.to_owned() }
            }
            ("", 404) if file.is_some() => self.no_file(name, file),
            ("RepoNotFound", _) | (_, 401 | 404) => {
                let way = match with_token {
                    true => "HF_TOKEN must be of an account that may read it",
                    false => "set HF_TOKEN to a token of an account that may read it",
                };
                HubError::NoRepository { repo, what: name.kind().noun(), endpoint, way }
            }
            _ => return None,
        })
    }

    fn gated(&self, name: &HubName, with_token: bool, said: &str) -> HubError {
        let repo = name.repo().to_owned();
        let page = match name.kind() {
            RepoKind::Model => format!("{}/{repo}", self.endpoint),
            RepoKind::Dataset => format!("{}/datasets/{repo}", self.endpoint),
        };
        let way = match with_token {
            true => {
                "use a token of the account that did so (HF_TOKEN); some authors let people in by hand, which takes a while"
            }
            false => "set HF_TOKEN to a token of the account that did so",
        };
        HubError::Gated { repo, page, way, said: said.to_owned() }
    }

    fn no_file(&self, name: &HubName, file: Option<&str>) -> HubError {
        HubError::NoFile { name: name.to_string(), file: file.unwrap_or("such file").to_owned(), hint: String::new() }
    }

    /// Asks again after what may pass, up to `attempts` times, which count anew whenever something was done; `say` is told.
    pub(crate) async fn patiently<T, F: Future<Output = Result<T, Trouble>>>(
        &self,
        what: &str,
        attempts: u32,
        say: &dyn Fn(&str),
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, HubError> {
        let (mut made, mut pause) = (0, self.patience.pause);
        loop {
            let (why, least) = match attempt().await {
                Ok(got) => return Ok(got),
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing(why)) => (why, Duration::ZERO),
                Err(Trouble::Busy { why, after }) => (why, after),
                Err(Trouble::Stopped(why)) => {
                    (made, pause) = (0, self.patience.pause);
                    (why, Duration::ZERO)
                }
            };
            made += 1;
            if made >= attempts {
                return Err(HubError::Unreachable { what: what.to_owned(), why });
            }
            let wait = pause.max(least).min(LONGEST_PAUSE);
            say(&format!("{what}: {why}: trying again in {wait:?}"));
            sleep(wait).await;
            pause = pause.saturating_mul(2);
        }
    }

    /// How often one thing is asked for.
    pub(crate) fn attempts(&self) -> u32 {
        self.patience.attempts
    }
}

fn connector(patience: &Patience) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(patience.connect));
    tcp
}

/// Scheme and authority, of an address on the web.
fn origin(uri: &Uri) -> Option<(String, String)> {
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
    Some((scheme.to_owned(), uri.authority()?.as_str().to_lowercase()))
}

/// Name and port of the server, for people.
fn host(uri: &Uri) -> String {
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default().to_owned()
}

/// How long the server wants to be left alone, if it says so in seconds.
fn asked_later(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Where a redirect from `uri` leads; none if nowhere, or out of https.
fn next(uri: &Uri, place: &str) -> Option<Uri> {
    let next: Uri = match place.strip_prefix('/') {
        Some(rest) if rest.starts_with('/') => return None,
        Some(_) => format!("{}://{}{place}", uri.scheme_str()?, uri.authority()?).parse().ok()?,
        None => place.parse().ok()?,
    };
    let (scheme, _) = origin(&next)?;
    (scheme == "https" || uri.scheme_str() == Some("http")).then_some(next)
}

/// `text` as one part of an address.
fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_stays_protected() {
        let to = |from: &str, place: &str| next(&from.parse().unwrap(), place).map(|uri| uri.to_string());
        assert_eq!(to("https://hub/a/b", "/c?d=1").as_deref(), Some("https://hub/c?d=1"));
        assert_eq!(to("https://hub/a", "https://cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(to("http://hub/a", "http://cdn/x").as_deref(), Some("http://cdn/x"));
        for bad in ["http://cdn/x", "//cdn/x", "file:///etc/passwd", "", "ftp://x/y"] {
            assert_eq!(to("https://hub/a", bad), None, "{bad}");
        }
    }

    #[test]
    fn a_server_that_wants_time_gets_some() {
        let later = |text: &'static str| {
            asked_later(&HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static(text))]))
        };
        assert_eq!(later("7"), Some(Duration::from_secs(7)));
        assert_eq!((later("-1"), later("Wed, 21 Oct 2026 07:28:00 GMT"), later("")), (None, None, None));
        assert_eq!(asked_later(&HeaderMap::new()), None);
    }

    #[test]
    fn servers_are_named_without_passwords() {
        assert_eq!(host(&"https://me:secret@cdn.lan:8443/x".parse().unwrap()), "cdn.lan:8443");
    }

    #[test]
    fn parts_of_addresses_are_written_as_such() {
        assert_eq!(encoded("a b/ä?#%.gguf"), "a%20b%2F%C3%A4%3F%23%25.gguf");
    }
}
