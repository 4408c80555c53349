//! What can go wrong between a name and its files.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Why there are no files.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The server may not be asked, or does not answer, and the cache does not have everything.
    #[error("{name}: {why}, and the cache {} has no {missing}", cache.display())]
    NotCached {
        /// The model or dataset.
        name: String,
        /// Why only the cache counts.
        why: String,
        /// Folder of the cache.
        cache: PathBuf,
        /// What is not in it.
        missing: String,
    },
    /// Its authors want to be asked.
    #[error("{repo} is gated: accept its terms at {page}, then {way}{said}")]
    Gated {
        /// `owner/name`.
        repo: String,
        /// Where its terms are accepted.
        page: String,
        /// What to do after that.
        way: &'static str,
        /// The server's words.
        said: String,
    },
    /// The server does not take the token.
    #[error(
        "{repo}: the server does not take this token (status {status}): check HF_TOKEN, or make another at {page}{said}"
    )]
    Token {
        /// `owner/name`.
        repo: String,
        /// Status of the reply.
        status: u16,
        /// Where tokens are made.
        page: String,
        /// The server's words.
        said: String,
    },
    /// There is no such repository, or it is not shown to strangers.
    #[error("{repo}: there is no such {what} at {endpoint}, or it is private: {way}")]
    NoRepository {
        /// `owner/name`.
        repo: String,
        /// What it would hold.
        what: &'static str,
        /// The server.
        endpoint: String,
        /// What to do if it is private.
        way: &'static str,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repo}: there is no revision {revision:?}")]
    NoRevision {
        /// `owner/name`.
        repo: String,
        /// What was asked for.
        revision: String,
    },
    /// The repository lacks what is needed.
    #[error("{name}: the repository has no {file}{hint}")]
    NoFile {
        /// The model.
        name: String,
        /// What it lacks.
        file: String,
        /// The way out, if what it has shows one.
        hint: String,
    },
    /// A dataset of several parts, of which nobody says which is meant.
    #[error("{repo} has several parts: {}; name one, as {repo}:{}", parts.join(", "), parts.first().map_or("", String::as_str))]
    Parts {
        /// `owner/name`.
        repo: String,
        /// Files and folders.
        parts: Vec<String>,
    },
    /// What was downloaded is not what the server said it would be.
    #[error("{file}: expected {expected}, got {got}; it was thrown away")]
    Damaged {
        /// Model and file.
        file: String,
        /// What the server announced.
        expected: String,
        /// What came.
        got: String,
    },
    /// The server said something that must not be believed.
    #[error("{place}: {what} expected {expected}, got {got:?}")]
    Untrusted {
        /// Whose answer.
        place: String,
        /// Which part of it.
        what: &'static str,
        /// What it should have been.
        expected: &'static str,
        /// What it was.
        got: String,
    },
    /// A server answers with a status that nothing here can help.
    #[error("{what}: {host} answers with status {status}{said}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The server, which is not the hub's where that led elsewhere.
        host: String,
        /// Status of the reply.
        status: u16,
        /// The server's words.
        said: String,
    },
    /// No answer in several attempts.
    #[error("{what}: {why} (HF_HUB_OFFLINE=1 makes do with the cache)")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// Why.
        why: String,
    },
    /// A file of the cache.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The environment.
    #[error("{0}")]
    Settings(String),
}

/// Puts the name of the file to an error of the system.
pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> HubError + '_ {
    move |source| HubError::Io { path: path.to_owned(), source }
}

/// How an attempt failed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It may go better another time.
    Passing(String),
    /// It may go better, and some of it is done that was not done before.
    Stopped(String),
    /// The server wants to be asked later.
    Busy {
        /// Its answer.
        why: String,
        /// How much later.
        after: Duration,
    },
    /// It will not.
    Lasting(HubError),
}

impl From<HubError> for Trouble {
    fn from(error: HubError) -> Self {
        Self::Lasting(error)
    }
}

/// An error with its causes, on one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
