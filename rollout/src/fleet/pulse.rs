//! The `Pulse` service: tells every few seconds that this process is there, and what its actors are at.

use folgore_actors::{BoxFuture, Context, Observed, Service, ServiceError, SupervisorHandle};
use folgore_protocol::{Heartbeat, PolicyId, Role, subjects};
use serde_json::{Map, Value};

use super::BEAT;

/// Who tells.
#[derive(Clone, Debug)]
pub struct PulseConfig {
    /// What the process does.
    pub role: Role,
    /// Its name in the run.
    pub worker: String,
    /// The machine.
    pub host: String,
    /// Version of the executable.
    pub build: String,
    /// Episodes or requests that it can have in hand.
    pub slots: u32,
}

/// The service.
pub struct Pulse {
    config: PulseConfig,
    supervisor: SupervisorHandle,
}

impl Pulse {
    /// Tells of the actors of `supervisor`.
    pub fn new(config: PulseConfig, supervisor: SupervisorHandle) -> Self {
        Self { config, supervisor }
    }

    async fn beat(&self, state: Option<&str>) -> Heartbeat {
        let observed = self.supervisor.observe().await.unwrap_or_default();
        let seen = Seen::of(&observed);
        let PulseConfig { role, worker, host, build, slots } = self.config.clone();
        Heartbeat {
            role,
            worker,
            host,
            pid: std::process::id(),
            build,
            state: state.map_or_else(|| seen.state(), str::to_owned),
            slots,
            active: seen.active,
            policy: seen.policy,
            status: seen.status,
        }
    }
}

impl Service for Pulse {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let key = self.config.worker.clone();
            loop {
                let beat = self.beat(None).await;
                if let Err(error) = context.links.publish_event(subjects::HEARTBEATS, &beat, &key).await {
                    tracing::debug!(%error, "heartbeat not told");
                }
                if context.shutdown.unless_stopping(tokio::time::sleep(BEAT)).await.is_none() {
                    break;
                }
            }
            // Losable like all of them: without it the worker is gone after a while.
            let beat = self.beat(Some("leaving")).await;
            let _ = context.links.publish_event(subjects::HEARTBEATS, &beat, &key).await;
            Ok(())
        })
    }
}

/// What the actors of a process show, in the terms of a heartbeat.
struct Seen {
    active: u32,
    waiting_for_policy: u64,
    policy: Option<PolicyId>,
    status: Value,
}

impl Seen {
    fn of(observed: &[Observed]) -> Self {
        let number = |key: &str| observed.iter().filter_map(|o| o.status.get(key)?.as_u64()).sum::<u64>();
        let policy = observed.iter().find_map(|o| serde_json::from_value(o.status.get("policy")?.clone()).ok());
        let status: Map<String, Value> =
            observed.iter().filter(|o| !o.status.is_null()).map(|o| (o.name.clone(), o.status.clone())).collect();
        let active = u32::try_from(number("active")).unwrap_or(u32::MAX);
        Self { active, waiting_for_policy: number("waiting_for_policy"), policy, status: status.into() }
    }

    fn state(&self) -> String {
        match (self.active, self.waiting_for_policy) {
            (1.., _) => "working".into(),
            (0, 1..) => "waiting for a newer policy".into(),
            (0, 0) => "idle".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use folgore_actors::ChildState;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_heartbeat_sums_up_what_the_actors_show() {
        let policy = PolicyId { epoch: 2, step: 3, digest: folgore_protocol::Digest::of(b"a") };
        let actor =
            |name: &str, status| Observed { name: name.into(), state: ChildState::Running, restarts: 0, status };
        let seen = Seen::of(&[
            actor("generator", json!({ "policy": policy })),
            actor("rollout-0", json!({ "active": 3, "waiting_for_policy": 1 })),
            actor("pulse", Value::Null),
        ]);
        assert_eq!((seen.active, seen.policy, seen.state().as_str()), (3, Some(policy), "working"));
        assert_eq!(seen.status.as_object().unwrap().len(), 2);
        let idle = Seen::of(&[actor("rollout-0", json!({ "active": 0, "waiting_for_policy": 2 }))]);
        assert_eq!(idle.state(), "waiting for a newer policy");
    }
}
