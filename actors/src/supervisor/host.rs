//! The actor that hosts one run of one service: it owns the task of the run and tells how it ended.

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::{AbortHandle, JoinError};

use super::Factory;
use crate::{Context, ServiceError, compute::panic_text};

/// Reason of an actor whose run was aborted.
pub(super) const ABORTED: &str = "aborted";

/// The host. Its end tells the root how the run ended: terminated, terminated with [`ABORTED`], or failed.
pub(super) struct Host;

/// What a host starts from.
pub(super) struct Arguments {
    pub(super) factory: Factory,
    pub(super) context: Context,
}

/// Control of one run.
pub(super) enum HostMsg {
    /// Stop the run in the middle.
    Abort,
    /// The run has ended.
    Ended(End),
}

/// How a run ended.
pub(super) enum End {
    Fine,
    Failed(String),
    Aborted,
}

/// Aborts its task when it is dropped, hence also when the host is killed.
pub(super) struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Actor for Host {
    type Msg = HostMsg;
    type State = Task;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<HostMsg>,
        Arguments { factory, context }: Arguments,
    ) -> Result<Task, ActorProcessingErr> {
        // The factory runs inside, so that its panic is a failed run like any other.
        let run = tokio::spawn(async move { factory().run(context).await });
        let task = Task(run.abort_handle());
        tokio::spawn(async move {
            let end = end_of(run.await);
            // Refused only if the host is gone, and then nobody wants to know.
            let _ = myself.cast(HostMsg::Ended(end));
        });
        Ok(task)
    }

    async fn handle(
        &self,
        myself: ActorRef<HostMsg>,
        message: HostMsg,
        task: &mut Task,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            HostMsg::Abort => task.0.abort(),
            HostMsg::Ended(End::Fine) => myself.stop(None),
            HostMsg::Ended(End::Aborted) => myself.stop(Some(ABORTED.into())),
            HostMsg::Ended(End::Failed(reason)) => return Err(reason.into()),
        }
        Ok(())
    }
}

fn end_of(joined: Result<Result<(), ServiceError>, JoinError>) -> End {
    match joined {
        Ok(Ok(())) => End::Fine,
        Ok(Err(error)) => End::Failed(with_causes(&*error)),
        Err(joining) => match joining.try_into_panic() {
            Ok(panic) => End::Failed(format!("panicked: {}", panic_text(&*panic))),
            Err(_) => End::Aborted,
        },
    }
}

/// The text of `error` and of its causes, leaving out those that the text before has told already.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn causes_are_told_once() {
        let root = Layer { text: "no space left", source: None };
        let middle = Layer { text: "cannot write a.bin: no space left", source: Some(Box::new(root)) };
        let top = Layer { text: "checkpoint 3", source: Some(Box::new(middle)) };
        assert_eq!(with_causes(&top), "checkpoint 3: cannot write a.bin: no space left");
    }
}
