//! What a connection needs to know: where, as whom, and how patient.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use folgore_protocol::names::{Names, Role, check_name};

use super::NatsError;

/// Where to connect, as whom, and with which bounds.
#[derive(Clone, Debug)]
pub struct NatsConfig {
    /// Address of the server: `nats://host:port`; several with commas between.
    pub url: String,
    /// Names of the run.
    pub run: Names,
    /// What the process does.
    pub role: Role,
    /// Name of the worker: the last token of the subjects that prove the sender, and of the inbox.
    pub name: String,
    /// Key and certificates; none for a server without accounts, as tests use.
    pub identity: Option<Identity>,
    /// How long one request to the server may take.
    pub request_timeout: Duration,
    /// How long to try for the first connection; zero: once.
    pub connect_within: Duration,
    /// Redelivery time of jobs.
    pub ack_wait_jobs: Duration,
    /// Redelivery time of trajectories.
    pub ack_wait_trajectories: Duration,
    /// Most messages in a queue, waiting and held together.
    pub queue_bound: usize,
    /// Most messages of one topic that a slow reader may be behind before it misses some, rounded up to a power of two.
    pub topic_bound: usize,
    /// Copies that the servers of a cluster keep of each stream and bucket.
    pub replicas: usize,
    /// Creates the stream of a queue outside the two of a run when it is first used: for tests, whose identity may.
    pub create_queues: bool,
}

impl NatsConfig {
    /// The usual bounds and times, without an identity.
    ///
    /// # Errors
    /// If `name` cannot be part of a subject.
    pub fn new(url: impl Into<String>, run: Names, role: Role, name: &str) -> Result<Self, NatsError> {
        check_name("worker", name).map_err(NatsError::Name)?;
        Ok(Self {
            url: url.into(),
            run,
            role,
            name: name.to_owned(),
            identity: None,
            request_timeout: Duration::from_secs(5),
            connect_within: Duration::ZERO,
            ack_wait_jobs: Duration::from_secs(60),
            ack_wait_trajectories: Duration::from_secs(30),
            queue_bound: 16_384,
            topic_bound: 1024,
            replicas: 1,
            create_queues: false,
        })
    }
}

/// Who a process is on the server.
#[derive(Clone)]
pub struct Identity {
    /// Seed of its user nkey (`SU...`); a secret.
    pub seed: String,
    /// Certificate of the authority that the server's certificate is checked against; TLS is required with it.
    pub ca: Option<PathBuf>,
    /// Its own certificate.
    pub cert: Option<PathBuf>,
    /// The key of that certificate; a secret.
    pub key: Option<PathBuf>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("ca", &self.ca).field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// Length of an encoded nkey seed.
const SEED_LEN: usize = 58;

impl Identity {
    /// Reads the identity in `folder`: `nkey.seed`, and for TLS `ca.pem`, `cert.pem` and `key.pem`, all three or none.
    ///
    /// # Errors
    /// If a file is missing, or the seed is not one of a user; the seed is not quoted.
    pub fn read(folder: &Path) -> Result<Self, NatsError> {
        let path = folder.join("nkey.seed");
        let bad = |path: &Path, reason: String| NatsError::Identity { path: path.to_owned(), reason };
        let text = fs::read_to_string(&path).map_err(|e| bad(&path, e.to_string()))?;
        let seed = text.trim();
        let base32 = |c: char| c.is_ascii_uppercase() || ('2'..='7').contains(&c);
        if seed.len() != SEED_LEN || !seed.starts_with("SU") || !seed.chars().all(base32) {
            let reason = format!("expected the seed of a user nkey (SU and {} of A-Z 2-7)", SEED_LEN - 2);
            return Err(bad(&path, reason));
        }
        let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| folder.join(name));
        let there = [&ca, &cert, &key].map(|path| path.is_file());
        if there == [false; 3] {
            return Ok(Self { seed: seed.to_owned(), ca: None, cert: None, key: None });
        }
        if let Some((missing, _)) = [&ca, &cert, &key].into_iter().zip(there).find(|(_, there)| !there) {
            return Err(bad(missing, "missing: TLS needs ca.pem, cert.pem and key.pem together".into()));
        }
        Ok(Self { seed: seed.to_owned(), ca: Some(ca), cert: Some(cert), key: Some(key) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_whole_or_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let read = || Identity::read(folder.path());
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert!(read().unwrap_err().to_string().contains("nkey.seed"));
        write("nkey.seed", "SUSECRET\n");
        let error = read().unwrap_err().to_string();
        assert!(error.contains("nkey.seed") && !error.contains("SECRET"), "{error}");
        let seed = format!("SU{}", "A2".repeat(28));
        write("nkey.seed", &format!("{seed}\n"));
        let bare = read().unwrap();
        assert_eq!((bare.seed.as_str(), bare.ca.is_none()), (seed.as_str(), true));
        assert!(!format!("{bare:?}").contains(&seed), "a secret is not printed");
        write("ca.pem", "");
        write("key.pem", "");
        assert!(read().unwrap_err().to_string().contains("cert.pem"));
        write("cert.pem", "");
        assert!(read().unwrap().key.is_some());
    }
}
