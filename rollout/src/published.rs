//! Follows the published policy: each new one with its bytes, fetched and checked.

use std::{sync::Arc, time::Duration};

use folgore_actors::{Backoff, LinkError, Links, TypedWatch};
use folgore_protocol::{Digest, PolicyPublished, subjects};

/// Policies as they are published. What is overwritten meanwhile is skipped, and what cannot be had is kept out with a word in
/// the log: the one before it stays.
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
        loop {
            let published = match self.watch.next().await? {
                Ok(stored) => stored.value,
                Err(error) => {
                    tracing::error!(%error, "published policy not readable, kept out");
                    continue;
                }
            };
            if published.policy.epoch < self.epoch {
                let epoch = self.epoch;
                tracing::error!(policy = %published.policy, epoch, "policy of a head that has lost the run, kept out");
                continue;
            }
            match fetch(&self.links, &published).await {
                Ok(bytes) => {
                    self.epoch = published.policy.epoch;
                    return Some((published, bytes));
                }
                Err(reason) => {
                    tracing::error!(policy = %published.policy, reason, "policy not fetched, kept out");
                }
            }
        }
    }
}

/// Fetches a policy's bytes, which the link checks against the name. Tries again a few times, because the blob may travel
/// slower than its announcement.
async fn fetch(links: &Links, published: &PolicyPublished) -> Result<Option<Arc<[u8]>>, String> {
    const ATTEMPTS: u32 = 5;
    let Some(blob) = &published.blob else { return Ok(None) };
    let name = Digest::try_from(blob.clone())?;
    if name != published.policy.digest {
        let (expected, got) = (published.policy.digest.short(), name.short());
        return Err(format!("expected bytes of digest {expected}, got {got}"));
    }
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2), published.policy.step);
    for attempt in 1.. {
        match links.blob.get(name).await {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(error) if attempt == ATTEMPTS => return Err(error.to_string()),
            Err(_) => tokio::time::sleep(backoff.next_wait()).await,
        }
    }
    Err("not tried".into())
}

#[cfg(test)]
mod tests {
    use folgore_actors::{LocalConfig, local};
    use folgore_protocol::PolicyId;

    use super::*;

    #[tokio::test]
    async fn bytes_that_are_not_the_policys_are_kept_out_and_the_next_policy_comes() {
        let folder = tempfile::tempdir().unwrap();
        let links = local("test", LocalConfig::new(folder.path()));
        let blob = links.blob.put((*b"7").into()).await.unwrap();
        let publish = async |revision, policy| {
            let blob = Some(blob.hex());
            let published = PolicyPublished { policy, blob, bytes: 1, fingerprint: Vec::new(), kept: Vec::new() };
            links.put_state_if(subjects::POLICY, revision, &published).await.unwrap();
            published
        };
        let mut policies = Policies::follow(&links).await.unwrap();
        let forged = publish(0, PolicyId { epoch: 0, step: 1, digest: Digest::of(b"8") }).await;
        let reason = fetch(&links, &forged).await.unwrap_err();
        assert!(reason.contains("expected bytes of digest"), "{reason}");
        let true_one = PolicyId { epoch: 0, step: 2, digest: blob };
        publish(1, true_one).await;
        let (published, bytes) = policies.next().await.unwrap();
        assert_eq!((published.policy, bytes.as_deref()), (true_one, Some(&b"7"[..])));
    }
}
