//! Divides rows into those to train on and those held out, by their prompts, so that no prompt is on both sides.

use std::collections::BTreeSet;

use folgore_protocol::{Digest, Task};

/// What a prompt is compared by.
fn identity(task: &Task) -> Digest {
    // A prompt is made of JSON; writing it cannot fail.
    Digest::of(&serde_json::to_vec(&task.prompt).unwrap_or_default())
}

/// The place of a prompt in 0..1: the same in every file, every order and every run.
fn place(identity: &Digest) -> f64 {
    let high = identity.0.iter().take(7).fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    high as f64 / (1u64 << 56) as f64
}

/// Holds out the tasks whose prompt falls below `fraction`. Where `fraction` is above 0 and none does, the lowest prompt of
/// several is held out, so that a small file has something to evaluate on.
pub(crate) fn by_hash(tasks: Vec<Task>, fraction: f64) -> (Vec<Task>, Vec<Task>) {
    let identities: Vec<Digest> = tasks.iter().map(identity).collect();
    let different: BTreeSet<&Digest> = identities.iter().collect();
    let lowest = different.first().copied().copied();
    let none = different.iter().all(|id| place(id) >= fraction);
    let fallback = lowest.filter(|_| none && fraction > 0.0 && different.len() > 1);
    let out = |id: &Digest| place(id) < fraction || Some(*id) == fallback;
    let (mut train, mut eval) = (Vec::new(), Vec::new());
    for (task, id) in tasks.into_iter().zip(&identities) {
        if out(id) { eval.push(task) } else { train.push(task) }
    }
    (train, eval)
}

/// The tasks whose prompts are not in `eval`.
pub(crate) fn without(tasks: Vec<Task>, eval: &[Task]) -> Vec<Task> {
    let held: BTreeSet<Digest> = eval.iter().map(identity).collect();
    tasks.into_iter().filter(|task| !held.contains(&identity(task))).collect()
}

/// Number of tasks whose prompt stands in an earlier one.
pub(crate) fn repeated(tasks: &[Task]) -> u64 {
    let different: BTreeSet<Digest> = tasks.iter().map(identity).collect();
    (tasks.len() - different.len()) as u64
}

#[cfg(test)]
mod tests {
    use folgore_protocol::Prompt;

    use super::*;

    fn tasks(n: usize) -> Vec<Task> {
        let prompt = |i: usize| Prompt::Text(format!("question {}", i % 900));
        (0..n).map(|i| Task { id: format!("t:{i}"), prompt: prompt(i), columns: Default::default() }).collect()
    }

    #[test]
    fn no_prompt_is_on_both_sides_and_the_share_is_kept() {
        let (train, eval) = by_hash(tasks(1000), 0.2);
        assert_eq!(train.len() + eval.len(), 1000);
        assert!((150..250).contains(&eval.len()), "{}", eval.len());
        assert_eq!(without(train.clone(), &eval).len(), train.len());
        assert_eq!(repeated(&tasks(1000)), 100);
    }

    #[test]
    fn a_row_keeps_its_side_when_others_come_and_go() {
        let side = |n: usize| by_hash(tasks(n), 0.3).1.into_iter().map(|task| task.id).collect::<BTreeSet<_>>();
        assert!(side(200).is_subset(&side(800)));
    }

    #[test]
    fn small_files_still_hold_something_out() {
        assert_eq!(by_hash(tasks(5), 1e-9).1.len(), 1);
        assert_eq!(by_hash(tasks(5), 0.0).1.len(), 0);
        assert_eq!(by_hash(tasks(1), 1e-9).1.len(), 0, "the only prompt is to train on");
    }
}
