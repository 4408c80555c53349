//! The `Reception` service of the head: lets workers in that hold what the run is made of, and keeps the roster.

use std::collections::BTreeMap;

use folgore_actors::{BoxFuture, Context, Service, ServiceError, TypedEvent};
use folgore_protocol::{Heartbeat, Hello, HelloReply, PROTOCOL_VERSION, Role, RunCard, subjects};
use tokio::time::Instant;

use super::Roster;

/// Requests answered at once; each takes microseconds.
const ASKS_MAX: usize = 16;

/// The service.
pub struct Reception {
    /// What the run is.
    pub card: RunCard,
    /// Epoch of this head.
    pub epoch: u32,
    /// Who is there.
    pub roster: Roster,
}

impl Service for Reception {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let Reception { card, epoch, roster } = *self;
            let mut beats = context.links.subscribe_events::<Heartbeat>(subjects::HEARTBEATS).await?;
            let answer = move |hello: Hello| {
                let reply = judge(&card, epoch, &hello);
                match &reply {
                    HelloReply::Accept { .. } => {
                        tracing::info!(worker = hello.worker, role = %hello.role, "worker joins");
                    }
                    HelloReply::Reject { field, want, got } => {
                        tracing::warn!(worker = hello.worker, field, want, got, "worker refused");
                    }
                }
                async move { Ok::<_, String>(reply) }
            };
            let _served = context.links.serve_typed(subjects::HELLO, ASKS_MAX, answer).await?;
            loop {
                let Some(event) = context.shutdown.unless_stopping(beats.next()).await else { return Ok(()) };
                match event {
                    None => return Err("heartbeats: the link is closed".into()),
                    Some(Ok(TypedEvent::Happened { body, .. })) => {
                        roster.heard(body, Instant::now());
                    }
                    Some(Ok(TypedEvent::Missed(missed))) => tracing::debug!(missed, "heartbeats missed"),
                    Some(Err(error)) => tracing::warn!(%error, "heartbeat not readable"),
                }
                let now = Instant::now();
                let count = |role: Role| roster.strength(role, now).workers;
                let counts: BTreeMap<&str, usize> = Role::ALL.iter().map(|r| (r.name(), count(*r))).collect();
                context.status.set_field("workers", counts);
            }
        })
    }
}

/// Whether a worker may join: the protocol, the run's facts that its role needs, and no fact that differs.
fn judge(card: &RunCard, epoch: u32, hello: &Hello) -> HelloReply {
    let reject = |field: &str, want: String, got: String| HelloReply::Reject { field: field.to_owned(), want, got };
    if hello.protocol != PROTOCOL_VERSION {
        return reject("protocol", PROTOCOL_VERSION.to_string(), hello.protocol.to_string());
    }
    for name in needed(hello.role) {
        let (want, got) = (card.facts.get(*name), hello.facts.get(*name));
        if want.is_none() || got.is_none() {
            let text = |fact: Option<&String>| fact.cloned().unwrap_or_else(|| "nothing".into());
            return reject(name, text(want), text(got));
        }
    }
    for (name, got) in &hello.facts {
        match card.facts.get(name) {
            Some(want) if want == got => {}
            Some(want) => return reject(name, want.clone(), got.clone()),
            None => return reject(name, "nothing".into(), got.clone()),
        }
    }
    HelloReply::Accept { epoch }
}

/// The facts that a role must show.
fn needed(role: Role) -> &'static [&'static str] {
    match role {
        Role::Rollout => &["base model", "tokenizer", "chat template", "configuration"],
        Role::Reward => &["configuration"],
        Role::Retriever => &["configuration", "corpus"],
        Role::Head | Role::Console => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_worker_is_told_what_differs() {
        let all = [("base model", "aa"), ("tokenizer", "bb"), ("chat template", "cc"), ("configuration", "dd")];
        let card = RunCard {
            run: "demo".into(),
            protocol: PROTOCOL_VERSION,
            build: "1".into(),
            config: String::new(),
            facts: facts(&all),
        };
        let hello = |role, own: &[(&str, &str)]| Hello {
            protocol: PROTOCOL_VERSION,
            build: "1".into(),
            role,
            worker: "w".into(),
            facts: facts(own),
        };
        let rejected = |hello: &Hello| match judge(&card, 3, hello) {
            HelloReply::Reject { field, want, got } => (field, want, got),
            other => panic!("let in: {other:?}"),
        };
        let text = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(judge(&card, 3, &hello(Role::Rollout, &all)), HelloReply::Accept { epoch: 3 });
        assert_eq!(judge(&card, 3, &hello(Role::Reward, &all[3..])), HelloReply::Accept { epoch: 3 });
        let other = [("base model", "xx"), ("tokenizer", "bb"), ("chat template", "cc"), ("configuration", "dd")];
        assert_eq!(rejected(&hello(Role::Rollout, &other)), text("base model", "aa", "xx"));
        assert_eq!(rejected(&hello(Role::Rollout, &all[..2])), text("chat template", "cc", "nothing"));
        let corpus = [("configuration", "dd"), ("corpus", "ee")];
        assert_eq!(rejected(&hello(Role::Retriever, &corpus)), text("corpus", "nothing", "ee"));
        let old = Hello { protocol: 0, ..hello(Role::Rollout, &all) };
        assert_eq!(rejected(&old), text("protocol", &PROTOCOL_VERSION.to_string(), "0"));
    }
}
