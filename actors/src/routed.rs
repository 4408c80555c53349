//! Links of two reaches: some subjects are asked and served inside the process, everything else goes far.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::{Ask, BoxFuture, Handler, LinkError, Links, Message, Served};

/// `far`, except that the asks of the subjects in `stays` are served and answered by `near`: what one process asks itself
/// needs no server.
pub fn routed(near: Links, far: Links, stays: &[&str]) -> Links {
    let stays = stays.iter().map(|subject| (*subject).to_owned()).collect();
    let ask = Arc::new(RoutedAsk { near: near.ask, far: far.ask, stays });
    Links { ask, ..far }
}

struct RoutedAsk {
    near: Arc<dyn Ask>,
    far: Arc<dyn Ask>,
    stays: BTreeSet<String>,
}

impl RoutedAsk {
    fn way(&self, subject: &str) -> &dyn Ask {
        if self.stays.contains(subject) { &*self.near } else { &*self.far }
    }
}

impl Ask for RoutedAsk {
    fn ask<'a>(
        &'a self,
        subject: &'a str,
        request: Message,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Message, LinkError>> {
        self.way(subject).ask(subject, request, deadline)
    }

    fn serve<'a>(
        &'a self,
        subject: &'a str,
        concurrency: usize,
        handler: Arc<dyn Handler>,
    ) -> BoxFuture<'a, Result<Served, LinkError>> {
        self.way(subject).serve(subject, concurrency, handler)
    }
}

#[cfg(test)]
mod tests {
    use folgore_protocol::Search;

    use super::*;
    use crate::{CallError, LocalConfig, local};

    #[tokio::test]
    async fn a_subject_that_stays_is_not_seen_far_away_and_the_others_are() {
        let dir = tempfile::tempdir().unwrap();
        let make = || local("demo", LocalConfig::new(dir.path()));
        let (near, far) = (make(), make());
        let links = routed(near.clone(), far.clone(), &["generate"]);
        let echo = |request: Search| async move { Ok::<_, String>(request) };
        let _generate = links.serve_typed("generate", 1, echo).await.unwrap();
        let _reward = links.serve_typed("reward", 1, echo).await.unwrap();
        let request = Search { query: "q".into(), top_k: 1 };
        for (asker, subject, answers) in [
            (&links, "generate", true),
            (&links, "reward", true),
            (&near, "generate", true),
            (&near, "reward", false),
            (&far, "generate", false),
            (&far, "reward", true),
        ] {
            let answer: Result<Search, CallError> = asker.call(subject, &request, "k", Duration::from_secs(10)).await;
            assert_eq!(answer.is_ok(), answers, "{subject}: {answer:?}");
        }
        links.state.put_if("policy", 0, b"x"[..].into()).await.unwrap();
        assert!(far.state.get("policy").await.unwrap().is_some(), "the other links are the far ones");
    }
}
