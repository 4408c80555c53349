//! The root actor: knows every service of the process and decides what each end means.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use folgore_protocol::seed;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::{sync::watch, task::AbortHandle, time::Instant};

use super::{
    ANSWER_WITHIN, ChildPolicy, ChildState, Factory, Observed, RestartPolicy, SupervisorError,
    host::{self, End, Host, HostMsg},
};
use crate::{Context, Level, Links, Shutdown, Status, backoff, hash};

pub(super) struct Root;

/// What the root starts from.
pub(super) struct Arguments {
    pub(super) links: Links,
    pub(super) policy: RestartPolicy,
    pub(super) shutdown: Shutdown,
    pub(super) outcome: watch::Sender<Option<Result<(), SupervisorError>>>,
}

/// Control of the whole run.
pub(super) enum RootMsg {
    Spawn {
        name: String,
        policy: ChildPolicy,
        factory: Factory,
        reply: RpcReplyPort<Result<(), SupervisorError>>,
    },
    Observe(RpcReplyPort<Vec<Observed>>),
    /// The wait before the restart of this child is over.
    Restart(usize),
    /// Everything is spawned: when all are done, the run is over.
    Complete,
    /// Stop, and abort what is left after this time.
    Stop(Duration),
    /// The switch has reached this level.
    Reached(Level),
    /// The time to stop is over.
    StopOver,
    /// The time to see aborted tasks end is over.
    AbortOver,
}

pub(super) struct RootState {
    arguments: Arguments,
    children: Vec<Child>,
    hosts: HashMap<ActorId, usize>,
    complete: bool,
    stopping: bool,
    failure: Option<SupervisorError>,
    level_watch: AbortHandle,
}

impl Drop for RootState {
    fn drop(&mut self) {
        self.level_watch.abort();
    }
}

struct Child {
    name: String,
    policy: ChildPolicy,
    factory: Factory,
    status: Status,
    state: ChildState,
    restarts: u32,
    /// When it was restarted, within the window.
    recent: VecDeque<Instant>,
    host: Option<ActorRef<HostMsg>>,
}

impl Child {
    /// Counts one more restart at `now` and gives the wait before it; none if there were too many.
    fn next_restart(&mut self, policy: &RestartPolicy, now: Instant) -> Option<Duration> {
        while self.recent.front().is_some_and(|at| now.duration_since(*at) > policy.within) {
            self.recent.pop_front();
        }
        if self.recent.len() >= policy.max_restarts {
            return None;
        }
        let doublings = self.recent.len() as u32;
        self.recent.push_back(now);
        self.restarts += 1;
        let jitter = seed::uniform(hash(&["restart", &self.name]), u64::from(self.restarts));
        Some(backoff::wait(policy.backoff, policy.backoff_cap, doublings, jitter))
    }

    fn failure(&self, reason: String) -> SupervisorError {
        SupervisorError::Escalated { name: self.name.clone(), restarts: self.restarts, reason }
    }

    fn is_live(&self) -> bool {
        matches!(self.state, ChildState::Running | ChildState::Restarting)
    }
}

impl Actor for Root {
    type Msg = RootMsg;
    type State = RootState;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<RootMsg>,
        arguments: Arguments,
    ) -> Result<RootState, ActorProcessingErr> {
        let shutdown = arguments.shutdown.clone();
        let level_watch = tokio::spawn(async move {
            shutdown.stopping().await;
            let _ = myself.cast(RootMsg::Reached(Level::Stopping));
            shutdown.now().await;
            let _ = myself.cast(RootMsg::Reached(Level::Now));
        })
        .abort_handle();
        Ok(RootState {
            arguments,
            children: Vec::new(),
            hosts: HashMap::new(),
            complete: false,
            stopping: false,
            failure: None,
            level_watch,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<RootMsg>,
        message: RootMsg,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RootMsg::Spawn { name, policy, factory, reply } => {
                let answer = state.spawn(&myself, name, policy, factory).await;
                // Nobody may be waiting any more; the service runs all the same.
                let _ = reply.send(answer);
            }
            RootMsg::Observe(reply) => {
                let _ = reply.send(state.observe());
            }
            RootMsg::Restart(at) => {
                if state.children[at].state == ChildState::Restarting {
                    state.start(&myself, at).await;
                }
            }
            RootMsg::Complete => state.complete = true,
            RootMsg::Stop(within) => state.stop(&myself, within),
            RootMsg::Reached(Level::Now) | RootMsg::StopOver => state.abort_all(&myself),
            RootMsg::Reached(_) => state.stop(&myself, state.arguments.policy.stop_within),
            RootMsg::AbortOver => state.give_up(),
        }
        state.end_if_over(&myself);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<RootMsg>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let (host, end) = match event {
            SupervisionEvent::ActorTerminated(host, _, Some(reason)) if reason == host::ABORTED => (host, End::Aborted),
            SupervisionEvent::ActorTerminated(host, _, _) => (host, End::Fine),
            SupervisionEvent::ActorFailed(host, error) => (host, End::Failed(error.to_string())),
            _ => return Ok(()),
        };
        if let Some(at) = state.hosts.remove(&host.get_id()) {
            state.children[at].host = None;
            state.ended(&myself, at, end);
        }
        state.end_if_over(&myself);
        Ok(())
    }
}

impl RootState {
    async fn spawn(
        &mut self,
        myself: &ActorRef<RootMsg>,
        name: String,
        policy: ChildPolicy,
        factory: Factory,
    ) -> Result<(), SupervisorError> {
        if self.stopping || self.arguments.shutdown.is_stopping() {
            return Err(SupervisorError::Stopping { name });
        }
        if self.children.iter().any(|child| child.name == name) {
            return Err(SupervisorError::NameTaken { name });
        }
        let (status, state) = (Status::new(), ChildState::Running);
        let recent = VecDeque::new();
        self.children.push(Child { name, policy, factory, status, state, restarts: 0, recent, host: None });
        self.start(myself, self.children.len() - 1).await;
        Ok(())
    }

    /// Starts a run of child `at` in a host of its own.
    async fn start(&mut self, myself: &ActorRef<RootMsg>, at: usize) {
        let child = &mut self.children[at];
        child.state = ChildState::Running;
        let context = Context {
            name: child.name.clone(),
            links: self.arguments.links.clone(),
            shutdown: self.arguments.shutdown.clone(),
            status: child.status.clone(),
        };
        let arguments = host::Arguments { factory: child.factory.clone(), context };
        match Host::spawn_linked(None, Host, arguments, myself.get_cell()).await {
            Ok((host, _)) => {
                self.hosts.insert(host.get_id(), at);
                child.host = Some(host);
            }
            Err(e) => self.ended(myself, at, End::Failed(format!("its actor cannot start: {e}"))),
        }
    }

    fn observe(&self) -> Vec<Observed> {
        let observe = |child: &Child| Observed {
            name: child.name.clone(),
            state: child.state,
            restarts: child.restarts,
            status: child.status.get(),
        };
        self.children.iter().map(observe).collect()
    }

    /// Decides what the end of child `at` means.
    fn ended(&mut self, myself: &ActorRef<RootMsg>, at: usize, end: End) {
        let child = &mut self.children[at];
        match end {
            End::Aborted => child.state = ChildState::Aborted,
            End::Fine => {
                child.state = ChildState::Done;
                if child.policy == ChildPolicy::RunEnds && !self.stopping {
                    self.stop(myself, self.arguments.policy.stop_within);
                }
            }
            End::Failed(reason) if self.stopping => {
                tracing::warn!(service = child.name, reason, "failed while stopping");
                child.state = ChildState::Failed;
                // What a permanent service leaves undone is done again by the next run; what the others had to save is lost.
                if child.policy != ChildPolicy::Permanent && self.failure.is_none() {
                    self.failure = Some(child.failure(reason));
                }
            }
            End::Failed(reason) => self.failed(myself, at, reason),
        }
    }

    /// Restarts child `at`, or stops everything because of it.
    fn failed(&mut self, myself: &ActorRef<RootMsg>, at: usize, reason: String) {
        let child = &mut self.children[at];
        let may_restart = child.policy == ChildPolicy::Permanent;
        let wait = may_restart.then(|| child.next_restart(&self.arguments.policy, Instant::now())).flatten();
        let Some(wait) = wait else {
            tracing::error!(service = child.name, restarts = child.restarts, reason, "failed for good");
            child.state = ChildState::Failed;
            self.failure = Some(child.failure(reason));
            self.stop(myself, self.arguments.policy.stop_within);
            return;
        };
        tracing::warn!(service = child.name, restarts = child.restarts, ?wait, reason, "failed, will be restarted");
        child.state = ChildState::Restarting;
        myself.send_after(wait, move || RootMsg::Restart(at));
    }

    /// Asks everyone to stop, and sees to it that it ends. Asked again, the earlier deadline holds.
    fn stop(&mut self, myself: &ActorRef<RootMsg>, within: Duration) {
        self.stopping = true;
        self.arguments.shutdown.request(Level::Stopping);
        for child in &mut self.children {
            if child.state == ChildState::Restarting {
                child.state = ChildState::Failed;
            }
        }
        myself.send_after(within, || RootMsg::StopOver);
    }

    fn abort_all(&mut self, myself: &ActorRef<RootMsg>) {
        self.stopping = true;
        self.arguments.shutdown.request(Level::Now);
        for child in &self.children {
            if let Some(host) = &child.host {
                // Refused only if it has ended meanwhile.
                let _ = host.cast(HostMsg::Abort);
            }
        }
        myself.send_after(ANSWER_WITHIN, || RootMsg::AbortOver);
    }

    /// Counts as aborted what does not even let itself be aborted, because it blocks its thread.
    fn give_up(&mut self) {
        for child in self.children.iter_mut().filter(|child| child.is_live()) {
            tracing::error!(service = child.name, "blocks its thread, left behind");
            child.state = ChildState::Aborted;
        }
    }

    /// Ends the run when there is nothing left to wait for.
    fn end_if_over(&mut self, myself: &ActorRef<RootMsg>) {
        if !(self.stopping || self.complete) || self.children.iter().any(Child::is_live) {
            return;
        }
        let aborted = self.children.iter().filter(|child| child.state == ChildState::Aborted);
        let names: Vec<String> = aborted.map(|child| child.name.clone()).collect();
        let outcome = match self.failure.take() {
            Some(failure) => Err(failure),
            None if names.is_empty() => Ok(()),
            None => Err(SupervisorError::Aborted { names }),
        };
        self.arguments.shutdown.request(Level::Stopping);
        self.arguments.outcome.send_replace(Some(outcome));
        myself.stop(None);
    }
}
