//! One question, one answer.

use super::{Action, Environment, Observation, Reaction};

/// Puts the task's prompt, takes one answer.
pub struct SingleTurn;

impl Environment for SingleTurn {
    fn step(&mut self, action: Action<'_>) -> Reaction {
        match action {
            Action::Begin(task) => Reaction::Observe(Observation::Prompt(task.prompt.clone())),
            Action::Turn { .. } => Reaction::Done,
            Action::Answer(_) => Reaction::Fail("single_turn asks for nothing, yet an answer came".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use folgore_protocol::{Prompt, StopReason, Task};

    #[test]
    fn asks_once_and_is_done() {
        let task = Task { id: "t".into(), prompt: Prompt::Text("2+2=".into()), columns: Default::default() };
        let mut environment = SingleTurn;
        let first = environment.step(Action::Begin(&task));
        assert_eq!(first, Reaction::Observe(Observation::Prompt(task.prompt.clone())));
        let turn = Action::Turn { text: "4", ids: &[4], stop_reason: StopReason::Eos };
        assert_eq!(environment.step(turn), Reaction::Done);
    }
}
