//! What a server holds of its runs, and who is at work there: gathered, and told to people.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result};
use folgore_actors::{
    CallError, Links,
    nats::{Nats, admin},
    typed::TypedEvent,
};
use folgore_protocol::{Heartbeat, PolicyId, PolicyPublished, Role, subjects};
use serde::Serialize;
use tokio::time::{Instant, timeout};

use crate::summary::hardware::bytes_text;

/// How long heartbeats are listened to: processes send one every five seconds.
pub const LISTEN: Duration = Duration::from_secs(6);

/// One run on a server.
#[derive(Debug, Serialize)]
pub struct RunStatus {
    /// Streams, consumers, epoch and who leads.
    #[serde(flatten)]
    pub server: admin::Status,
    /// The policy that is published; none too if it cannot be read.
    pub policy: Option<PolicyId>,
    /// Why what is published as the policy cannot be read: another version may have written it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_unreadable: Option<String>,
    /// Who was heard, by role and name.
    pub workers: Vec<Worker>,
}

/// Somebody who was heard.
#[derive(Debug, Serialize)]
pub struct Worker {
    /// What was heard.
    #[serde(flatten)]
    pub heartbeat: Heartbeat,
    /// Steps by which the policy that it serves is behind the published one; none if it serves none of this epoch.
    pub behind: Option<u64>,
}

/// Looks at the run of `nats`, listening to heartbeats for `listen`.
pub async fn look(nats: &Nats, listen: Duration) -> Result<RunStatus> {
    let server = admin::status(nats).await?;
    let links = nats.links();
    let (policy, policy_unreadable) = match server.policy_revision {
        Some(_) => published(&links).await.context("policy")?,
        None => (None, None),
    };
    let heard = hear(nats, listen).await?;
    let workers = heard.into_values().map(|heartbeat| Worker { behind: behind(policy, heartbeat.policy), heartbeat });
    Ok(RunStatus { server, policy, policy_unreadable, workers: workers.collect() })
}

/// The published policy, or why it cannot be read. Who looks on wants to see the rest all the same.
async fn published(links: &Links) -> Result<(Option<PolicyId>, Option<String>), CallError> {
    match links.get_state::<PolicyPublished>(subjects::POLICY).await {
        Ok(stored) => Ok((stored.map(|stored| stored.value.policy), None)),
        Err(error) if error.link().is_some() => Err(error),
        Err(unreadable) => Ok((None, Some(unreadable.to_string()))),
    }
}

/// The last heartbeat of everybody who is heard within `listen`.
async fn hear(nats: &Nats, listen: Duration) -> Result<BTreeMap<(Role, String), Heartbeat>> {
    let mut heartbeats = nats.links().subscribe_events::<Heartbeat>(subjects::HEARTBEATS).await?;
    let (mut heard, until) = (BTreeMap::new(), Instant::now() + listen);
    while let Ok(Some(event)) = timeout(until.saturating_duration_since(Instant::now()), heartbeats.next()).await {
        match event {
            Ok(TypedEvent::Happened { body, .. }) => {
                heard.insert((body.role, body.worker.clone()), body);
            }
            Ok(TypedEvent::Missed(missed)) => tracing::debug!(missed, "heartbeats"),
            Err(error) => tracing::warn!(%error, "a heartbeat that cannot be read"),
        }
    }
    Ok(heard)
}

fn behind(published: Option<PolicyId>, serves: Option<PolicyId>) -> Option<u64> {
    let (published, serves) = (published?, serves?);
    (published.epoch == serves.epoch).then(|| published.step.saturating_sub(serves.step))
}

impl RunStatus {
    /// The status in lines.
    pub fn text(&self) -> Result<String> {
        let mut out = String::new();
        let server = &self.server;
        writeln!(out, "run         {} (nats-server {})", server.run, server.server)?;
        let head = server.head.as_ref().map_or("nobody".to_owned(), ToString::to_string);
        let epoch = server.epoch.map_or("none yet".to_owned(), |epoch| epoch.to_string());
        writeln!(out, "head        {head}, epoch {epoch}")?;
        let policy = match (self.policy, &self.policy_unreadable) {
            (Some(policy), _) => format!("{policy} (step@epoch:digest)"),
            (None, Some(reason)) => format!("cannot be read: {reason}"),
            (None, None) => "none yet".to_owned(),
        };
        writeln!(out, "policy      {policy}")?;
        for name in &server.missing {
            writeln!(
                out,
                "missing     {name}; the head makes it when it starts, and `folgore nats init --nats --run` does"
            )?;
        }
        for (name, store) in &server.stores {
            let bound = store.max_bytes.map_or("no bound".to_owned(), bytes_text);
            writeln!(
                out,
                "store       {name:<28} {:>8} messages  {} of {bound}",
                store.messages,
                bytes_text(store.bytes)
            )?;
        }
        for (name, consumer) in &server.consumers {
            let again = match consumer.redelivered {
                0 => String::new(),
                n => format!(", {n} of them not for the first time"),
            };
            writeln!(out, "backlog     {name:<28} {:>8} waiting, {} in hand{again}", consumer.waiting, consumer.held)?;
        }
        if self.workers.is_empty() {
            writeln!(out, "workers     none was heard within {} s", LISTEN.as_secs())?;
        }
        for Worker { heartbeat: h, behind } in &self.workers {
            let policy = match (h.policy, behind) {
                (None, _) => String::new(),
                (Some(policy), Some(0)) => format!(", policy {policy}"),
                (Some(policy), Some(n)) => format!(", policy {policy}, {n} steps behind"),
                (Some(policy), None) => format!(", policy {policy} of another epoch"),
            };
            let place = format!("{} process {}, version {}", h.host, h.pid, h.build);
            let name = format!("{} {}", h.role, h.worker);
            writeln!(out, "worker      {name:<28} {}, {} of {} slots{policy}; {place}", h.state, h.active, h.slots)?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use folgore_actors::{
        LocalConfig, local,
        nats::{
            Holder,
            admin::{ConsumerStatus, StoreStatus},
        },
    };
    use folgore_protocol::Digest;

    use super::*;

    fn policy(epoch: u32, step: u64) -> PolicyId {
        PolicyId { epoch, step, digest: Digest::of(b"adapter") }
    }

    fn worker(name: &str, serves: Option<PolicyId>) -> Worker {
        let heartbeat = Heartbeat {
            role: Role::Rollout,
            worker: name.into(),
            host: "gpu-1".into(),
            pid: 7,
            build: "0.1.0".into(),
            state: "working".into(),
            slots: 4,
            active: 3,
            policy: serves,
            status: serde_json::Value::Null,
        };
        Worker { behind: behind(Some(policy(2, 9)), serves), heartbeat }
    }

    fn status() -> RunStatus {
        let store = StoreStatus { messages: 3, bytes: 1 << 20, max_messages: None, max_bytes: Some(1 << 28) };
        let consumer = ConsumerStatus { waiting: 3, held: 2, redelivered: 1 };
        let server = admin::Status {
            run: "demo".into(),
            server: "2.15.1".into(),
            stores: [("RL_demo_JOBS".into(), store)].into(),
            consumers: [("RL_demo_JOBS/rollout".into(), consumer)].into(),
            missing: vec!["RL_demo_EVT".into()],
            policy_revision: Some(4),
            epoch: Some(2),
            head: Some(Holder::here("head", "box")),
        };
        let workers =
            vec![worker("w1", Some(policy(2, 9))), worker("w2", Some(policy(2, 7))), worker("w3", Some(policy(1, 9)))];
        RunStatus { server, policy: Some(policy(2, 9)), policy_unreadable: None, workers }
    }

    #[test]
    fn lines_say_what_waits_who_works_and_who_is_behind() {
        let text = status().text().unwrap();
        for said in [
            "head on box",
            "epoch 2",
            "9@2:",
            "RL_demo_EVT",
            "3 waiting, 2 in hand",
            "2 steps behind",
            "of another epoch",
        ] {
            assert!(text.contains(said), "{said:?} is not in\n{text}");
        }
        assert_eq!(text.matches("behind").count(), 1, "{text}");
        let nobody = RunStatus { workers: Vec::new(), ..status() };
        assert!(nobody.text().unwrap().contains("none was heard"));
    }

    #[tokio::test]
    async fn a_policy_that_cannot_be_read_hides_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let links = local("demo", LocalConfig::new(folder.path()));
        assert_eq!(published(&links).await.unwrap(), (None, None));
        links.put_state_if(subjects::POLICY, 0, &"from another version").await.unwrap();
        let (policy, policy_unreadable) = published(&links).await.unwrap();
        let reason = policy_unreadable.clone().unwrap();
        let text = RunStatus { policy, policy_unreadable, ..status() }.text().unwrap();
        assert!(text.contains(&format!("cannot be read: {reason}")) && text.contains("3 waiting"), "{text}");
    }

    #[test]
    fn the_same_is_told_to_programs() {
        let value = serde_json::to_value(status()).unwrap();
        assert_eq!(value["run"], "demo");
        assert_eq!(value["workers"][1]["behind"], 2);
        assert_eq!(value["workers"][1]["worker"], "w2");
        assert_eq!(value["consumers"]["RL_demo_JOBS/rollout"]["waiting"], 3);
    }
}
