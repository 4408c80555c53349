//! Who starts services, restarts them, and ends the process in order when restarting does not help.
//!
//! One ractor actor, the root, supervises one host actor per running service. Mailboxes carry control only; the work runs
//! in a task that its host owns. A service that fails comes to the root as ractor's own supervision event.

mod host;
mod root;

use std::{fmt, sync::Arc, time::Duration};

use ractor::{Actor, ActorRef, RpcReplyPort, rpc::CallResult};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::{Level, Links, Service, Shutdown};
use root::{Root, RootMsg};

/// How long the root takes at most to answer a question, and to see an aborted task end.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What the end of one service means for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildPolicy {
    /// Failed: restarted. Ended: done, the others go on.
    #[default]
    Permanent,
    /// Failed: the whole process is asked to stop at once, because a second try could do harm. Ended: done.
    Critical,
    /// The service is what the run is for. Failed: as critical. Ended: the whole process is asked to stop, and that is
    /// the wanted end.
    RunEnds,
}

/// When to restart, and when to give up.
#[derive(Clone, Debug)]
pub struct RestartPolicy {
    /// Most restarts of one service within `within`; one more failure escalates.
    pub max_restarts: usize,
    /// The window in which restarts count.
    pub within: Duration,
    /// Wait before the first restart; doubles with each restart in the window.
    pub backoff: Duration,
    /// Longest wait before a restart.
    pub backoff_cap: Duration,
    /// How long services may take to save and stop before they are aborted.
    pub stop_within: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            max_restarts: 5,
            within: Duration::from_secs(600),
            backoff: Duration::from_millis(200),
            backoff_cap: Duration::from_secs(30),
            stop_within: Duration::from_secs(120),
        }
    }
}

/// Why a supervised run did not end well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SupervisorError {
    /// A service failed and restarting it is not allowed, or did not help.
    #[error("{name} failed after {restarts} restarts: {reason}")]
    Escalated {
        /// The service.
        name: String,
        /// How often it was restarted.
        restarts: u32,
        /// Its last error.
        reason: String,
    },
    /// These did not stop in time, or were told to stop at once; what they had not saved is lost.
    #[error("stopped before they had finished: {}", names.join(", "))]
    Aborted {
        /// The services.
        names: Vec<String>,
    },
    /// Names are unique.
    #[error("{name}: a service of that name is there already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Nothing starts while the process stops.
    #[error("{name}: not started, the process is stopping")]
    Stopping {
        /// The service.
        name: String,
    },
    /// The supervisor itself is gone.
    #[error("the supervisor is gone: {reason}")]
    Gone {
        /// What is known.
        reason: String,
    },
}

/// Where a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildState {
    /// At work.
    Running,
    /// Failed; waits for its restart.
    Restarting,
    /// Ended as wanted.
    Done,
    /// Failed for good.
    Failed,
    /// Stopped in the middle.
    Aborted,
}

impl fmt::Display for ChildState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChildState::Running => "running",
            ChildState::Restarting => "restarting",
            ChildState::Done => "done",
            ChildState::Failed => "failed",
            ChildState::Aborted => "aborted",
        })
    }
}

/// What can be seen of one service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Observed {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub state: ChildState,
    /// How often it was restarted.
    pub restarts: u32,
    /// What it shows of itself.
    pub status: Value,
}

/// Makes a service anew for each start.
pub(crate) type Factory = Arc<dyn Fn() -> Box<dyn Service> + Send + Sync>;

/// Starts supervision; see [`SupervisorHandle`].
pub struct Supervisor;

impl Supervisor {
    /// Starts a supervisor whose services get `links`.
    ///
    /// # Errors
    /// [`SupervisorError::Gone`] if its actor cannot start.
    pub async fn start(links: Links, policy: RestartPolicy) -> Result<SupervisorHandle, SupervisorError> {
        let shutdown = Shutdown::new();
        let (outcome, ended) = watch::channel(None);
        let arguments = root::Arguments { links, policy, shutdown: shutdown.clone(), outcome };
        // Unnamed, because ractor's registry is one for the whole process.
        let started = Root::spawn(None, Root, arguments).await;
        let (root, _) = started.map_err(|e| SupervisorError::Gone { reason: e.to_string() })?;
        Ok(SupervisorHandle { root, shutdown, ended })
    }
}

/// Speaks to a supervisor. Clones speak to the same one; it goes on without any.
#[derive(Clone)]
pub struct SupervisorHandle {
    root: ActorRef<RootMsg>,
    shutdown: Shutdown,
    ended: watch::Receiver<Option<Result<(), SupervisorError>>>,
}

impl SupervisorHandle {
    /// The switch that all services look at, for [`crate::on_ctrl_c`] and for whoever else may stop the process.
    pub fn token(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Starts a service that is restarted when it fails; `factory` makes it anew each time.
    ///
    /// # Errors
    /// [`SupervisorError::NameTaken`], [`SupervisorError::Stopping`].
    pub async fn spawn(
        &self,
        name: &str,
        factory: impl Fn() -> Box<dyn Service> + Send + Sync + 'static,
    ) -> Result<(), SupervisorError> {
        self.spawn_as(name, ChildPolicy::Permanent, factory).await
    }

    /// As [`SupervisorHandle::spawn`], with what its end means for the others.
    pub async fn spawn_as(
        &self,
        name: &str,
        policy: ChildPolicy,
        factory: impl Fn() -> Box<dyn Service> + Send + Sync + 'static,
    ) -> Result<(), SupervisorError> {
        let (name, factory): (_, Factory) = (name.to_owned(), Arc::new(factory));
        self.question(|reply| RootMsg::Spawn { name, policy, factory, reply }).await?
    }

    /// All services in the order of their start, also those that ended.
    ///
    /// # Errors
    /// [`SupervisorError::Gone`] after the end of the run.
    pub async fn observe(&self) -> Result<Vec<Observed>, SupervisorError> {
        self.question(RootMsg::Observe).await
    }

    /// Asks all services to save and stop, aborts those that have not after `deadline`, and waits for the end.
    ///
    /// # Errors
    /// As [`SupervisorHandle::wait`].
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), SupervisorError> {
        // Refused only if the run has ended, which wait then tells.
        let _ = self.root.cast(RootMsg::Stop(deadline));
        self.shutdown.request(Level::Stopping);
        self.wait().await
    }

    /// Waits until the run has ended: somebody asked for it, a [`ChildPolicy::RunEnds`] service did, or all services
    /// are done (hence spawn everything first). The time to stop, once asked, is bounded by the policy.
    ///
    /// # Errors
    /// [`SupervisorError::Escalated`] with the first failure that could not be helped, or [`SupervisorError::Aborted`].
    pub async fn wait(&self) -> Result<(), SupervisorError> {
        // Refused only if the run has ended, which is what is waited for.
        let _ = self.root.cast(RootMsg::Complete);
        let mut ended = self.ended.clone();
        let outcome = ended.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        let gone = || Err(SupervisorError::Gone { reason: "it ended without an outcome".into() });
        outcome.ok().flatten().unwrap_or_else(gone)
    }

    async fn question<T: Send + 'static>(
        &self,
        ask: impl FnOnce(RpcReplyPort<T>) -> RootMsg,
    ) -> Result<T, SupervisorError> {
        let gone = |reason: String| SupervisorError::Gone { reason };
        match self.root.call(ask, Some(ANSWER_WITHIN)).await {
            Ok(CallResult::Success(answer)) => Ok(answer),
            Ok(CallResult::Timeout) => Err(gone(format!("no answer within {ANSWER_WITHIN:?}"))),
            Ok(CallResult::SenderError) => Err(gone("the run has ended".into())),
            Err(e) => Err(gone(e.to_string())),
        }
    }
}
