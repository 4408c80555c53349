//! One file, whole or not at all: of the size that the hub announced and, where it announced one, with that SHA-256.

use std::{
    cell::Cell,
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use folgore_config::hub::{HubName, RepoKind};
use http::{StatusCode, Uri};
use sha2::{Digest as _, Sha256};

use crate::{
    HubError,
    cache::{RepoCache, is_at, make},
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
    size: u64,
}

impl Remote {
    /// Whether the name tells what the contents are.
    fn names_contents(&self) -> bool {
        self.etag.len() == 64 && self.etag.bytes().all(|b| b.is_ascii_hexdigit())
    }
}

impl Downloads<'_> {
    /// Makes `file` a part of the snapshot, unless it is one.
    pub(crate) async fn bring(&self, file: &str) -> Result<(), HubError> {
        if self.cache.has(self.commit, file) {
            return Ok(());
        }
        let place = format!("{}@{}/{file}", self.name.repo(), &self.commit[..12]);
        let (owner, name) = self.name.repo().split_once('/').unwrap_or_default();
        let kind = Some("datasets").filter(|_| self.name.kind() == RepoKind::Dataset);
        let path = kind.into_iter().chain([owner, name, "resolve", self.commit]).chain(file.split('/'));
        let uri = self.client.at(path)?;
        let (client, attempts) = (self.client, self.client.attempts());
        let head = || async { self.remote(&place, &client.ask(self.name, Some(file), &uri, Ask::Head).await?) };
        let remote = client.patiently(&place, attempts, self.say, head).await?;
        let blob = self.cache.blob(&remote.etag);
        make(blob.parent().unwrap_or(&blob))?;
        let _held = self.cache.hold(&remote.etag, self.say)?;
        // whoever had it may have brought the file
        if self.cache.has(self.commit, file) {
            return Ok(());
        }
        if !is_whole(&blob, &remote) {
            let part = PathBuf::from(format!("{}.incomplete", blob.display()));
            let furthest = Cell::new(0);
            let fetch = || self.fetch(file, &place, &uri, &remote, &part, &furthest);
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
        let size = reply.header("x-linked-size").or(own).unwrap_or_default();
        let bytes = size.parse().map_err(|_| untrusted("size:", "a number of bytes", size))?;
        Ok(Remote { etag: etag.to_owned(), size: bytes })
    }

    /// One attempt to complete the file `path`; `furthest` is what the attempts so far came to.
    async fn fetch(
        &self,
        file: &str,
        place: &str,
        uri: &Uri,
        remote: &Remote,
        path: &Path,
        furthest: &Cell<u64>,
    ) -> Result<(), Trouble> {
        let mut part = Part::open(path)?;
        let had = part.len.max(furthest.get());
        let ended = self.complete(file, place, uri, remote, &mut part).await;
        furthest.set(had.max(part.len));
        match ended {
            Err(Trouble::Passing(why)) if part.len > had => Err(Trouble::Stopped(why)),
            ended => ended,
        }
    }

    async fn complete(
        &self,
        file: &str,
        place: &str,
        uri: &Uri,
        remote: &Remote,
        part: &mut Part,
    ) -> Result<(), Trouble> {
        // nothing would show that the rest belongs to another beginning, unless the contents are named
        if part.len > remote.size || !remote.names_contents() {
            part.restart()?;
        }
        let from = part.len;
        if from == 0 || from != remote.size {
            let mut reply = self.client.ask(self.name, Some(file), uri, Ask::Get { from }).await?;
            if from > 0 && !goes_on(&reply, from) {
                part.restart()?;
            }
            if part.len == 0 && reply.status != StatusCode::OK {
                return Err(Trouble::Passing(format!("status {} to a request from byte {from} on", reply.status)));
            }
            self.take(place, &mut reply, remote, part).await?;
        }
        if part.len < remote.size {
            return Err(Trouble::Passing(format!("it ended after {} of {} bytes", part.len, remote.size)));
        }
        match part.end(remote)? {
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
        let tell = |len: u64| (self.say)(&format!("{place}: {} of {} MB", megabytes(len), megabytes(remote.size)));
        if remote.size > WORTH_TELLING {
            tell(part.len);
        }
        let mut told = Instant::now();
        while let Some(piece) = reply.piece().await? {
            part.add(&piece)?;
            if part.len > remote.size {
                part.restart()?;
                let (expected, got) = (format!("{} bytes", remote.size), "more".to_owned());
                return Err(HubError::Damaged { file: place.to_owned(), expected, got }.into());
            }
            if told.elapsed() > TELL_EVERY {
                told = Instant::now();
                tell(part.len);
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
    fs::metadata(blob).is_ok_and(|found| found.is_file() && found.len() == remote.size)
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

    /// Puts it on the disk; if the contents are named and are others, they are thrown away and their SHA-256 is given.
    fn end(&mut self, remote: &Remote) -> Result<Option<String>, Trouble> {
        let got: String = std::mem::take(&mut self.hash).finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if remote.names_contents() && !remote.etag.eq_ignore_ascii_case(&got) {
            self.restart()?;
            return Ok(Some(got));
        }
        self.file.sync_all().map_err(io(&self.path))?;
        // what was counted is what is published, whoever else keeps to no lock
        let is_there = is_at(&self.file, &self.path);
        let len = self.file.metadata().map_err(io(&self.path))?.len();
        if is_there && len == self.len {
            return Ok(None);
        }
        if is_there {
            self.restart()?;
        }
        Err(Trouble::Passing(format!("another program writes to {}", self.path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_others_write_to_is_not_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let remote = Remote { etag: "0".repeat(40), size: 3 };
        let mut part = Part::open(&path).unwrap();
        part.add(b"abc").unwrap();
        fs::write(&path, b"abcdef").unwrap();
        assert!(matches!(part.end(&remote), Err(Trouble::Passing(_))));
        assert_eq!(fs::read(&path).unwrap(), b"", "it is thrown away");

        part.add(b"abc").unwrap();
        fs::rename(&path, folder.path().join("published")).unwrap();
        assert!(matches!(part.end(&remote), Err(Trouble::Passing(_))));
        assert_eq!(fs::read(folder.path().join("published")).unwrap(), b"abc", "it is not ours");

        let mut part = Part::open(&path).unwrap();
        part.add(b"abc").unwrap();
        assert!(matches!(part.end(&remote), Ok(None)));
    }
}
