//! One file, whole and proven, or not at all.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use folgore_config::hub::HubName;
use http::{StatusCode, Uri};
use sha2::{Digest as _, Sha256};

use crate::{
    HubError,
    cache::{RepoCache, make},
    client::{Ask, Client, Reply},
    error::{Trouble, io},
};

/// Between two lines about a download.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Files above this size are told about.
const WORTH_TELLING: u64 = 10_000_000;
/// Longest name of a blob.
const LONGEST_ETAG: usize = 128;

/// Brings the files of one commit.
pub(crate) struct Downloads<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a RepoCache,
    pub(crate) name: &'a HubName,
    pub(crate) commit: &'a str,
    pub(crate) say: &'a dyn Fn(&str),
}

/// What the hub says of a file.
#[derive(Debug)]
struct Remote {
    /// Its name in the cache; of large files the SHA-256 of the contents.
    etag: String,
    size: Option<u64>,
}

impl Downloads<'_> {
    /// Makes `file` a part of the snapshot, unless it is one.
    pub(crate) async fn bring(&self, file: &str) -> Result<(), HubError> {
        if self.cache.has(self.commit, file) {
            return Ok(());
        }
        let place = format!("{}@{}/{file}", self.name.repo(), &self.commit[..12]);
        let (owner, name) = self.name.repo().split_once('/').unwrap_or_default();
        let uri = self.client.at([owner, name, "resolve", self.commit].into_iter().chain(file.split('/')))?;
        let (client, attempts) = (self.client, self.client.attempts());
        let head = || async { self.remote(&place, &client.ask(self.name, Some(file), &uri, Ask::Head).await?) };
        let remote = client.patiently(&place, attempts, self.say, head).await?;
        let blob = self.cache.blob(&remote.etag);
        make(blob.parent().unwrap_or(&blob))?;
        let _held = self.cache.hold(&remote.etag, self.say)?;
        if !is_whole(&blob, &remote) {
            let part = PathBuf::from(format!("{}.incomplete", blob.display()));
            let fetch = || self.fetch(file, &place, &uri, &remote, &part);
            client.patiently(&place, attempts, self.say, fetch).await?;
            fs::rename(&part, &blob).map_err(io(&blob))?;
        }
        self.cache.link(self.commit, file, &remote.etag)
    }

    /// Reads what the hub says of a file; of one that lies elsewhere, it says it in the redirect.
    fn remote(&self, place: &str, reply: &Reply) -> Result<Remote, Trouble> {
        let untrusted = |what, expected, got: &str| HubError::Untrusted {
            place: place.to_owned(),
            what,
            expected,
            got: got.to_owned(),
        };
        if let Some(other) = reply.header("x-repo-commit").filter(|commit| *commit != self.commit) {
            return Err(untrusted("commit:", "the one that was asked for", other).into());
        }
        let etag = reply.header("x-linked-etag").or_else(|| reply.header("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let plain = etag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if etag.is_empty() || etag.len() > LONGEST_ETAG || !plain {
            return Err(untrusted("etag:", "letters and digits", etag).into());
        }
        let own = reply.header("content-length").filter(|_| !reply.status.is_redirection());
        let size = reply.header("x-linked-size").or(own).and_then(|size| size.parse().ok());
        Ok(Remote { etag: etag.to_owned(), size })
    }

    /// One attempt to complete the file `part`.
    async fn fetch(&self, file: &str, place: &str, uri: &Uri, remote: &Remote, part: &Path) -> Result<(), Trouble> {
        let mut part = Part::open(part)?;
        if remote.size.is_some_and(|size| part.len > size) {
            part.restart()?;
        }
        let from = part.len;
        if from == 0 || remote.size != Some(from) {
            let mut reply = self.client.ask(self.name, Some(file), uri, Ask::Get { from }).await?;
            if from > 0 && !goes_on(&reply, from) {
                part.restart()?;
                if reply.status != StatusCode::OK {
                    return Err(Trouble::Passing(format!("status {} to a request for the rest", reply.status)));
                }
            }
            self.take(place, &mut reply, remote, &mut part).await?;
        }
        if let Some(size) = remote.size.filter(|size| part.len < *size) {
            return Err(Trouble::Passing(format!("it ended after {} of {size} bytes", part.len)));
        }
        match part.end(&remote.etag)? {
            None => Ok(()),
            // what was there from before may be to blame
            Some(_) if from > 0 => Err(Trouble::Passing("another sha256 than announced".into())),
            Some(got) => {
                Err(HubError::Damaged { file: place.to_owned(), expected: format!("sha256 {}", remote.etag), got }
                    .into())
            }
        }
    }

    async fn take(&self, place: &str, reply: &mut Reply, remote: &Remote, part: &mut Part) -> Result<(), Trouble> {
        let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
        let whole = remote.size.map(|size| format!(" of {} MB", megabytes(size))).unwrap_or_default();
        if remote.size.is_none_or(|size| size > WORTH_TELLING) {
            (self.say)(&format!("{place}: {}{whole}", megabytes(part.len)));
        }
        let mut told = Instant::now();
        while let Some(piece) = reply.piece().await? {
            part.add(&piece)?;
            if let Some(size) = remote.size.filter(|size| part.len > *size) {
                part.restart()?;
                let (expected, got) = (format!("{size} bytes"), "more".to_owned());
                return Err(HubError::Damaged { file: place.to_owned(), expected, got }.into());
            }
            if told.elapsed() > TELL_EVERY {
                told = Instant::now();
                (self.say)(&format!("{place}: {}{whole}", megabytes(part.len)));
            }
        }
        Ok(())
    }
}

/// Whether the answer goes on at byte `from`.
fn goes_on(reply: &Reply, from: u64) -> bool {
    let range = reply.header("content-range").and_then(|range| range.strip_prefix("bytes "));
    let first = range.and_then(|range| range.split('-').next()?.parse::<u64>().ok());
    reply.status == StatusCode::PARTIAL_CONTENT && first == Some(from)
}

/// Whether the blob is there; one of another size is not it.
fn is_whole(blob: &Path, remote: &Remote) -> bool {
    fs::metadata(blob).is_ok_and(|found| found.is_file() && remote.size.is_none_or(|size| size == found.len()))
}

/// What there is of a download.
struct Part {
    path: PathBuf,
    file: File,
    len: u64,
    hash: Sha256,
}

impl Part {
    /// That in `path`, read to go on with its hash.
    fn open(path: &Path) -> Result<Self, HubError> {
        let file = File::options().read(true).create(true).append(true).open(path).map_err(io(path))?;
        let mut part = Self { path: path.to_owned(), file, len: 0, hash: Sha256::new() };
        let mut buffer = vec![0; 1 << 20];
        loop {
            match part.file.read(&mut buffer).map_err(io(path))? {
                0 => return Ok(part),
                read => {
                    part.hash.update(&buffer[..read]);
                    part.len += read as u64;
                }
            }
        }
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(io(&self.path))?;
        (self.len, self.hash) = (0, Sha256::new());
        Ok(())
    }

    fn add(&mut self, piece: &[u8]) -> Result<(), HubError> {
        self.file.write_all(piece).map_err(io(&self.path))?;
        self.hash.update(piece);
        self.len += piece.len() as u64;
        Ok(())
    }

    /// Puts it on the disk; if `etag` is a SHA-256 and not that of the contents, they are thrown away and theirs is given.
    fn end(mut self, etag: &str) -> Result<Option<String>, HubError> {
        let got: String = std::mem::take(&mut self.hash).finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let names_contents = etag.len() == got.len() && etag.bytes().all(|b| b.is_ascii_hexdigit());
        if names_contents && !etag.eq_ignore_ascii_case(&got) {
            self.restart()?;
            return Ok(Some(got));
        }
        self.file.sync_all().map_err(io(&self.path))?;
        Ok(None)
    }
}
