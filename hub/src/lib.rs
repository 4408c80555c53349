//! Models and datasets of the Hugging Face hub.
//!
//! [`obtain`] turns a name into a folder or a file of the cache that all programs of Hugging Face share (`cache.rs` has its layout):
//! what Python downloaded is used, and the other way round. Only what Folgore reads is downloaded, each file under the lock that
//! Python takes, checked against the size that the hub announces, and renamed when it is whole. Of large files, which the weights are,
//! the hub announces the SHA-256 too: it is checked, and what was interrupted goes on where it was; other files begin anew. What the
//! hub says is not believed where it could lead out of the cache.
//!
//! The client is ours: hf-hub 1.0 brings some 250 crates along, a second database and TLS stack among them; hf-hub 0.4 keeps
//! neither to deadlines nor to an offline mode, and does not look at what it downloaded.

mod cache;
mod client;
mod download;
mod error;
mod need;
mod rows;
mod settings;

use std::{path::PathBuf, thread};

use folgore_config::hub::{HubName, is_commit, stays_inside};
use serde_json::Value;
use tokio::runtime::Runtime;

use cache::{Missing, RepoCache};
use client::{Ask, Client};
use download::Downloads;
pub use error::HubError;
pub use need::Need;
use need::{INDEX, SINGLE};
pub use rows::obtain_rows;
pub use settings::{Patience, Settings};

/// Longest list of a repository's files.
const LISTING_LIMIT: usize = 16 << 20;

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obtained {
    /// The folder of its files; for a name with a GGUF file, that file.
    pub path: PathBuf,
    /// The commit that its files are of.
    pub commit: String,
}

/// Gives the files of `name` that `need` asks for, out of the cache or from the hub; `say` is told what takes time.
///
/// A name with a commit costs no request once its files are there. A branch or a tag costs one, for the commit that it is now; where
/// the hub cannot be reached, it is the commit that it was.
///
/// # Errors
/// If there is no such model or revision, it may not be read, it lacks what is needed, the hub cannot be reached (or may not be) and the
/// cache does not have it all, or what comes is not what was announced.
pub fn obtain(
    settings: &Settings,
    name: &HubName,
    need: Need,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Obtained, HubError> {
    apart(|runtime| runtime.block_on(found(settings, name, need, say)))
}

/// Does `work` on a thread of its own, because callers may be in a runtime already, where no other can be waited for.
fn apart<T: Send>(work: impl FnOnce(Runtime) -> Result<T, HubError> + Send) -> Result<T, HubError> {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        work(runtime.map_err(|e| HubError::Settings(format!("no runtime for downloads: {e}")))?)
    };
    let ended = thread::scope(|scope| scope.spawn(work).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn found(settings: &Settings, name: &HubName, need: Need, say: &dyn Fn(&str)) -> Result<Obtained, HubError> {
    let local = Local::look(settings, name, need);
    if let Some(obtained) = local.obtained().filter(|_| settings.offline || local.is_settled()) {
        return Ok(obtained);
    }
    if settings.offline {
        return Err(local.lacking("the hub is not asked (HF_HUB_OFFLINE)".into()));
    }
    let client = Client::new(settings)?;
    let attempts = if local.obtained().is_some() { 1 } else { client.attempts() };
    let listing = match (asked(&client, name, attempts, say).await, local.obtained()) {
        (Err(HubError::Unreachable { why, .. }), Some(obtained)) => {
            say(&format!("warning: {name}: {why}: the files in the cache are used as they are"));
            return Ok(obtained);
        }
        (Err(HubError::Unreachable { why, .. }), None) => {
            return Err(local.lacking(format!("{} cannot be asked: {why}", settings.endpoint)));
        }
        (listing, _) => listing?,
    };
    let cache = &local.cache;
    let downloads = Downloads { client: &client, cache, name, commit: &listing.commit, say };
    bring_all(&downloads, &listing, need).await?;
    cache.note_revision(&listing.commit, say);
    Ok(Obtained { path: place(cache, name, &listing.commit), commit: listing.commit })
}

/// What the hub says of a revision.
async fn asked(client: &Client, name: &HubName, attempts: u32, say: &dyn Fn(&str)) -> Result<Listing, HubError> {
    let uri = listing_uri(client, name)?;
    let ask = || async {
        let reply = client.ask(name, None, &uri, Ask::Get { from: 0 }).await?;
        listing(name, &reply.whole(name.repo(), LISTING_LIMIT).await?)
    };
    client.patiently(name.repo(), attempts, say, ask).await
}

/// What the cache has of a model before anybody is asked.
struct Local<'a> {
    settings: &'a Settings,
    name: &'a HubName,
    cache: RepoCache,
    commit: Option<String>,
    missing: Missing,
}

impl<'a> Local<'a> {
    fn look(settings: &'a Settings, name: &'a HubName, need: Need) -> Self {
        let cache = RepoCache::of(&settings.cache, name);
        let commit = cache.commit();
        let missing = commit.as_deref().map(|commit| cache.missing(commit, need)).unwrap_or_default();
        Self { settings, name, cache, commit, missing }
    }

    /// What can be used as it is.
    fn obtained(&self) -> Option<Obtained> {
        let commit = self.commit.clone().filter(|_| self.missing.required.is_empty())?;
        Some(Obtained { path: place(&self.cache, self.name, &commit), commit })
    }

    /// Whether the hub could not tell more.
    fn is_settled(&self) -> bool {
        self.name.commit().is_some() && self.missing.unknown.is_empty()
    }

    /// The error that it does not suffice.
    fn lacking(&self, why: String) -> HubError {
        let missing = match &self.commit {
            Some(_) => self.missing.required.join(", "),
            None => format!("revision {} of it", self.name.revision()),
        };
        HubError::NotCached { name: self.name.to_string(), why, cache: self.settings.cache.clone(), missing }
    }
}

/// Folder or file of a snapshot.
fn place(cache: &RepoCache, name: &HubName, commit: &str) -> PathBuf {
    let folder = cache.snapshot(commit);
    name.file().map_or(folder.clone(), |file| folder.join(file))
}

/// A revision as the hub has it.
struct Listing {
    commit: String,
    files: Vec<String>,
}

fn listing_uri(client: &Client, name: &HubName) -> Result<http::Uri, HubError> {
    let (owner, model) = name.repo().split_once('/').unwrap_or_default();
    client.at(["api", name.kind().plural(), owner, model, "revision", name.revision()])
}

fn listing(name: &HubName, text: &[u8]) -> Result<Listing, error::Trouble> {
    let untrusted = |what, expected, got: String| {
        error::Trouble::from(HubError::Untrusted { place: name.to_string(), what, expected, got })
    };
    let value: Value =
        serde_json::from_slice(text).map_err(|e| untrusted("the hub's answer:", "a JSON object", e.to_string()))?;
    let commit = value["sha"].as_str().unwrap_or_default();
    if !is_commit(commit) || name.commit().is_some_and(|asked| asked != commit) {
        return Err(untrusted("sha:", "the commit that was asked for", commit.into()));
    }
    let siblings = value["siblings"].as_array().into_iter().flatten();
    let files = siblings.filter_map(|sibling| sibling["rfilename"].as_str());
    // a name that would lead elsewhere is of no file that is needed
    let files = files.filter(|file| stays_inside(file)).map(str::to_owned).collect();
    Ok(Listing { commit: commit.to_owned(), files })
}

/// Brings what `need` asks for: small files first, so that what will not do is known before the weights come.
async fn bring_all(downloads: &Downloads<'_>, listing: &Listing, need: Need) -> Result<(), HubError> {
    let has = |file: &str| listing.files.iter().any(|known| known == file);
    let expect = |file: &str| match has(file) {
        true => Ok(()),
        false => {
            let (name, hint) = (downloads.name, need::hint(downloads.name.repo(), &listing.files));
            Err(HubError::NoFile { name: name.to_string(), file: file.to_owned(), hint })
        }
    };
    if let Some(file) = downloads.name.file() {
        expect(file)?;
        return downloads.bring(file).await;
    }
    need.required().iter().try_for_each(|file| expect(file))?;
    if need.weights() && !has(INDEX) {
        expect(SINGLE)?;
    }
    for file in need.optional() {
        match has(file) {
            true => downloads.bring(file).await?,
            false => downloads.cache.note_absent(&listing.commit, file, downloads.say),
        }
    }
    for file in need.required() {
        downloads.bring(file).await?;
    }
    if need.weights() && has(SINGLE) {
        downloads.bring(SINGLE).await?;
    } else if need.weights() {
        downloads.bring(INDEX).await?;
        let shards = downloads.cache.shards(&listing.commit)?;
        shards.iter().try_for_each(|shard| expect(shard))?;
        for shard in &shards {
            downloads.bring(shard).await?;
        }
    }
    Ok(())
}
