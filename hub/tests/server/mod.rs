//! A small hub: the listing of a revision, small files behind a relative redirect, large ones on another server, as the real one does it.
#![allow(dead_code, reason = "each test target uses its own part")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use serde_json::json;
use sha2::{Digest as _, Sha256};

/// A repository at one commit.
#[derive(Clone, Default)]
pub struct Repo {
    /// Contents by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// What its branches and tags are called.
    pub revisions: Vec<String>,
    /// Its commit.
    pub commit: String,
    /// Its files are given to this token alone.
    pub gate: Option<String>,
}

impl Repo {
    /// The files of `folder`, as branch `main`.
    pub fn of(folder: &Path, commit: &str) -> Self {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let files = entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()));
        Self { files: files.collect(), revisions: vec!["main".into()], commit: commit.into(), gate: None }
    }
}

/// What the servers do wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// So many answers of the hub are 503.
    pub busy: u32,
    /// So many downloads end after these bytes.
    pub cut: Option<(u32, usize)>,
    /// The first byte of downloads is another one.
    pub damage: bool,
    /// A file in listings.
    pub sibling: Option<String>,
    /// The commit in listings.
    pub sha: Option<String>,
    /// A header of answers about files.
    pub header: Option<(&'static str, String)>,
    /// Status of answers about a part of a download: "200" gives all of it, "416" nothing; "206" gives a part unasked.
    pub range: Option<&'static str>,
    /// Refusals that come first: whether the server of large files gives it, the status and the headers.
    pub refusals: Vec<(bool, &'static str, Vec<(&'static str, &'static str)>)>,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// `HEAD` or `GET`, and the path.
    pub what: String,
    /// The token that came with it.
    pub token: Option<String>,
    /// The first byte that was wanted.
    pub from: u64,
    /// Whether it was asked of the server of large files.
    pub elsewhere: bool,
}

/// What both servers know.
#[derive(Default)]
pub struct State {
    /// Repositories by name.
    pub repos: BTreeMap<String, Vec<Repo>>,
    /// What goes wrong.
    pub faults: Faults,
    /// All requests so far.
    pub asked: Vec<Asked>,
    /// A token that the hub takes.
    pub known: Option<String>,
}

/// The servers; their threads end with the process.
pub struct Hub {
    /// Address of the hub.
    pub url: String,
    state: Arc<Mutex<State>>,
}

/// The name of large contents.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of the contents of `file`: of large files their SHA-256, of small ones another number.
pub fn etag(file: &str, bytes: &[u8]) -> String {
    let sha = sha256(bytes);
    if is_large(file) { sha } else { sha[..40].to_owned() }
}

fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors") || file.ends_with(".gguf") || file.ends_with(".bin")
}

impl Hub {
    /// Starts both servers on free ports.
    pub fn start() -> Self {
        let state = Arc::<Mutex<State>>::default();
        let [hub, store] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [url, elsewhere] = [&hub, &store].map(|l| format!("http://{}", l.local_addr().unwrap()));
        for (listener, is_store) in [(hub, false), (store, true)] {
            let (state, elsewhere) = (state.clone(), elsewhere.clone());
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, elsewhere) = (state.clone(), elsewhere.clone());
                    thread::spawn(
                        move || while answer(&stream, &state, (!is_store).then_some(&*elsewhere)).is_some() {},
                    );
                }
            });
        }
        Self { url, state }
    }

    /// A hub that has `repo` as `name`, which begins with `datasets/` for a dataset.
    pub fn with(name: &str, repo: Repo) -> Self {
        let hub = Self::start();
        hub.state().repos.insert(name.into(), vec![repo]);
        hub
    }

    /// What both servers know.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What was asked since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }
}

/// An answer's status, headers and contents.
type Answer = (&'static str, Vec<(String, String)>, Vec<u8>);

/// Answers one request; none at the end of the connection, or where the answer was cut short.
fn answer(stream: &TcpStream, state: &Mutex<State>, elsewhere: Option<&str>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let mut pairs = head.iter().skip(1).filter_map(|line| line.split_once(": "));
        pairs.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let what = head[0].trim_end_matches(" HTTP/1.1").to_owned();
    let token = header("authorization").map(|value| value.trim_start_matches("Bearer ").to_owned());
    let range = header("range").and_then(|range| range.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok());
    let from: u64 = range.unwrap_or(0);
    let mut state = state.lock().unwrap();
    state.asked.push(Asked { what: what.clone(), token: token.clone(), from, elsewhere: elsewhere.is_none() });
    let (method, path) = what.split_once(' ')?;
    let path = path.replace("%2F", "/");
    let first = state.faults.refusals.iter().position(|(by_store, ..)| *by_store == elsewhere.is_none());
    let first = first.map(|index| state.faults.refusals.remove(index));
    let (status, headers, body) = match elsewhere {
        _ if first.is_some() => {
            let (_, status, headers) = first.unwrap_or_default();
            (
                status,
                headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
                Vec::new(),
            )
        }
        Some(elsewhere) => of_hub(&mut state, &path, token.as_deref(), elsewhere),
        None => of_store(&mut state, path.trim_start_matches("/blob/"), from),
    };
    let cut = state.faults.cut.filter(|_| elsewhere.is_none() && method == "GET" && status.starts_with('2'));
    state.faults.cut =
        state.faults.cut.map(|(times, bytes)| (times - u32::from(cut.is_some()), bytes)).filter(|c| c.0 > 0);
    drop(state);
    let mut text = format!("HTTP/1.1 {status}\r\n");
    headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
    text.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    let mut writer = stream;
    writer.write_all(text.as_bytes()).ok()?;
    if method == "GET" {
        let sent = cut.map_or(body.len(), |(_, bytes)| bytes.min(body.len()));
        writer.write_all(&body[..sent]).ok()?;
    }
    if cut.is_some() {
        stream.shutdown(std::net::Shutdown::Both).ok()?;
        return None;
    }
    Some(())
}

fn refused(status: &'static str, code: &str) -> Answer {
    (status, vec![("X-Error-Code".into(), code.into()), ("X-Error-Message".into(), "no".into())], Vec::new())
}

fn of_hub(state: &mut State, path: &str, token: Option<&str>, elsewhere: &str) -> Answer {
    if state.faults.busy > 0 {
        state.faults.busy -= 1;
        return ("503 Service Unavailable", Vec::new(), Vec::new());
    }
    // datasets are known by their name with this word in front
    let path = path.replace("/api/resolve-cache/models/", "/api/resolve-cache/").replace("/api/models/", "/api/");
    let is_cached = path.starts_with("/api/resolve-cache/");
    let path = path.trim_start_matches("/api/resolve-cache").trim_start_matches('/');
    let listed = path.strip_prefix("api/");
    let path = listed.unwrap_or(path);
    let kind = if path.starts_with("datasets/") { "datasets/" } else { "" };
    let mut parts = path.trim_start_matches(kind).splitn(4, '/');
    let [owner, name, verb, rest] = [(); 4].map(|()| parts.next().unwrap_or_default());
    if token.is_some_and(|token| state.known.as_deref().is_some_and(|known| known != token)) {
        return (
            "401 Unauthorized",
            vec![("X-Error-Message".into(), "Invalid credentials in Authorization header".into())],
            Vec::new(),
        );
    }
    let Some(repos) = state.repos.get(&format!("{kind}{owner}/{name}")) else {
        // the hub does not tell strangers what there is
        return refused(if token.is_some() { "404 Not Found" } else { "401 Unauthorized" }, "RepoNotFound");
    };
    if listed.is_some() {
        assert_eq!(verb, "revision");
        let Some(repo) = repos.iter().find(|repo| repo.commit == rest || repo.revisions.iter().any(|r| r == rest))
        else {
            return refused("404 Not Found", "RevisionNotFound");
        };
        let names = repo.files.keys().chain(&state.faults.sibling).map(|file| json!({"rfilename": file}));
        let sha = state.faults.sha.as_ref().unwrap_or(&repo.commit);
        let body = json!({"id": format!("{owner}/{name}"), "sha": sha, "siblings": names.collect::<Vec<_>>()});
        return ("200 OK", Vec::new(), body.to_string().into_bytes());
    }
    let (commit, file) = if is_cached { (verb, rest) } else { rest.split_once('/').unwrap_or_default() };
    let repo = repos.iter().find(|repo| repo.commit == commit);
    let Some((repo, bytes)) = repo.and_then(|repo| Some((repo, repo.files.get(file)?))) else {
        return refused("404 Not Found", "EntryNotFound");
    };
    if repo.gate.is_some() && repo.gate.as_deref() != token {
        return refused(if token.is_some() { "403 Forbidden" } else { "401 Unauthorized" }, "GatedRepo");
    }
    let mut headers = vec![("X-Repo-Commit".to_owned(), commit.to_owned())];
    let tag = format!("\"{}\"", etag(file, bytes));
    let (status, body) = if is_large(file) {
        headers.push(("X-Linked-Etag".into(), tag.clone()));
        headers.push(("X-Linked-Size".into(), bytes.len().to_string()));
        headers.push(("ETag".into(), "\"of-the-redirect\"".into()));
        headers.push(("Location".into(), format!("{elsewhere}/blob/{}", sha256(bytes))));
        ("302 Found", b"elsewhere".to_vec())
    } else if is_cached {
        headers.push(("ETag".into(), tag));
        ("200 OK", bytes.clone())
    } else {
        let kind = if kind.is_empty() { "models/" } else { kind };
        headers.push(("Location".into(), format!("/api/resolve-cache/{kind}{owner}/{name}/{commit}/{file}")));
        ("307 Temporary Redirect", Vec::new())
    };
    if let Some((name, value)) = &state.faults.header {
        headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        headers.push(((*name).to_owned(), value.clone()));
    }
    (status, headers, body)
}

fn of_store(state: &mut State, sha: &str, from: u64) -> Answer {
    let mut all = state.repos.values().flatten().flat_map(|repo| repo.files.values());
    let mut bytes = all.find(|bytes| sha256(bytes) == sha).expect("only what the hub names is asked for").clone();
    if state.faults.damage {
        bytes[0] ^= 1;
    }
    let (whole, from) = (bytes.len(), from as usize);
    let from = match (state.faults.range, from) {
        (Some("200"), _) => 0,
        (Some("206"), 0) => 1,
        _ => from,
    };
    if from >= whole || (from > 0 && state.faults.range == Some("416")) {
        return ("416 Range Not Satisfiable", Vec::new(), Vec::new());
    }
    match from {
        0 => ("200 OK", Vec::new(), bytes),
        _ => {
            let range = format!("bytes {from}-{}/{whole}", whole - 1);
            ("206 Partial Content", vec![("Content-Range".into(), range)], bytes.split_off(from))
        }
    }
}
