//! Follows the published policy: each new one with its bytes, fetched and checked.

use std::{sync::Arc, time::Duration};

use folgore_actors::{Backoff, LinkError, Links, TypedWatch};
use folgore_protocol::{Digest, PolicyPublished, subjects};
use tokio::time::timeout;

/// Longest wait between two tries to fetch a policy.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Policies as they are published. What is overwritten meanwhile is skipped. A policy whose bytes cannot be had now is tried
/// for until another takes its place: the run may be waiting for this one. One that can never be had is kept out with a word
/// in the log. Meanwhile the one before it stays.
pub struct Policies {
    links: Links,
    watch: TypedWatch<PolicyPublished>,
    epoch: u32,
}

impl Policies {
    /// Follows the policy on `links`, beginning with the present one.
    pub async fn follow(links: &Links) -> Result<Self, LinkError> {
        Ok(Self { links: links.clone(), watch: links.watch_state(subjects::POLICY).await?, epoch: 0 })
    }

    /// The next policy with its bytes (none: the base as it is); none when the link is closed.
    pub async fn next(&mut self) -> Option<(PolicyPublished, Option<Arc<[u8]>>)> {
        let mut published = self.announced().await?;
        let mut backoff = backoff(&published);
        loop {
            // Not given up for a newer one on the way: over a slow link none would ever arrive whole.
            let wait = match fetch(&self.links, &published).await {
                Ok(bytes) => {
                    self.epoch = published.policy.epoch;
                    return Some((published, bytes));
                }
                Err(FetchError::Link(error)) => {
                    tracing::warn!(policy = %published.policy, %error, "policy not fetched yet");
                    backoff.next_wait()
                }
                Err(never) => {
                    tracing::error!(policy = %published.policy, error = %never, "policy kept out");
                    Duration::MAX
                }
            };
            if let Ok(newer) = timeout(wait, self.announced()).await {
                published = newer?;
                backoff = self::backoff(&published);
            }
        }
    }

    /// The next announcement that can be read and is of no head that has lost the run; none when the link is closed.
    async fn announced(&mut self) -> Option<PolicyPublished> {
        loop {
            match self.watch.next().await? {
                Ok(stored) if stored.value.policy.epoch >= self.epoch => return Some(stored.value),
                Ok(stored) => {
                    let (policy, epoch) = (stored.value.policy, self.epoch);
                    tracing::error!(%policy, epoch, "policy of a head that has lost the run, kept out");
                }
                Err(error) => tracing::error!(%error, "published policy not readable, kept out"),
            }
        }
    }
}

fn backoff(published: &PolicyPublished) -> Backoff {
    Backoff::new(Duration::from_millis(50), TRY_AGAIN, published.policy.step)
}

/// Why there are no bytes of a policy.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    /// The link did not bring them: they may travel slower than their announcement, or the server may be away.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The name of the bytes is none.
    #[error("name of its bytes: {0}")]
    Name(String),
    /// The announcement names other bytes than the policy.
    #[error("expected bytes of digest {expected}, got {got}")]
    Another {
        /// Digest of the policy.
        expected: String,
        /// Digest of the bytes named.
        got: String,
    },
}

/// Fetches a policy's bytes, which the link checks against the name.
async fn fetch(links: &Links, published: &PolicyPublished) -> Result<Option<Arc<[u8]>>, FetchError> {
    let Some(blob) = &published.blob else { return Ok(None) };
    let name = Digest::try_from(blob.clone()).map_err(FetchError::Name)?;
    if name != published.policy.digest {
        let (expected, got) = (published.policy.digest.short(), name.short());
        return Err(FetchError::Another { expected, got });
    }
    Ok(Some(links.blob.get(name).await?))
}

#[cfg(test)]
mod tests {
    use folgore_actors::{LocalConfig, local};
    use folgore_protocol::PolicyId;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    struct Bed {
        links: Links,
        revision: u64,
        _folder: tempfile::TempDir,
    }

    impl Bed {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Self { links: local("test", LocalConfig::new(folder.path())), revision: 0, _folder: folder }
        }

        /// Announces the policy of `step` whose bytes are to be `bytes`, under the name `blob`.
        async fn announce(&mut self, step: u64, bytes: &[u8], blob: &[u8]) -> PolicyId {
            let policy = PolicyId { epoch: 0, step, digest: Digest::of(bytes) };
            let blob = Some(Digest::of(blob).hex());
            let published = PolicyPublished { policy, blob, bytes: 1, fingerprint: Vec::new(), kept: Vec::new() };
            self.revision = self.links.put_state_if(subjects::POLICY, self.revision, &published).await.unwrap();
            policy
        }

        async fn put(&self, bytes: &[u8]) {
            self.links.blob.put(bytes.into()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn bytes_that_are_not_the_policys_are_kept_out_and_the_next_policy_comes() {
        let mut bed = Bed::new();
        bed.put(b"7").await;
        let mut policies = Policies::follow(&bed.links).await.unwrap();
        bed.announce(1, b"8", b"7").await;
        let forged = bed.links.get_state(subjects::POLICY).await.unwrap().unwrap().value;
        let reason = fetch(&bed.links, &forged).await.unwrap_err().to_string();
        assert!(reason.contains("expected bytes of digest"), "{reason}");
        let true_one = bed.announce(2, b"7", b"7").await;
        let (published, bytes) = policies.next().await.unwrap();
        assert_eq!((published.policy, bytes.as_deref()), (true_one, Some(&b"7"[..])));
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_whose_bytes_are_late_comes_all_the_same() {
        let mut bed = Bed::new();
        let mut policies = Policies::follow(&bed.links).await.unwrap();
        let late = bed.announce(1, b"7", b"7").await;
        let (next, ()) = tokio::join!(timeout(HOUR, policies.next()), async {
            tokio::time::sleep(Duration::from_secs(600)).await;
            bed.put(b"7").await;
        });
        let (published, bytes) = next.expect("it comes").unwrap();
        assert_eq!((published.policy, bytes.as_deref()), (late, Some(&b"7"[..])));
    }

    #[tokio::test(start_paused = true)]
    async fn another_policy_takes_the_place_of_one_that_never_comes() {
        let mut bed = Bed::new();
        bed.put(b"8").await;
        let mut policies = Policies::follow(&bed.links).await.unwrap();
        bed.announce(1, b"7", b"7").await;
        let (next, newer) = tokio::join!(timeout(HOUR, policies.next()), async {
            tokio::time::sleep(Duration::from_secs(600)).await;
            bed.announce(2, b"8", b"8").await
        });
        assert_eq!(next.expect("it comes").unwrap().0.policy, newer);
    }
}
