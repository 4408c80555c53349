//! Divides rows into those to train on and those held out, by their prompts, so that no prompt is on both sides.

use std::collections::BTreeSet;

use folgore_protocol::{Digest, Prompt};

/// A row with what it is compared by.
#[derive(Clone, Debug)]
pub(crate) struct Keyed<T> {
    /// Digest of its prompt.
    pub key: Digest,
    /// The row.
    pub row: T,
}

/// What a prompt is compared by.
pub(crate) fn key(prompt: &Prompt) -> Digest {
    // A prompt is made of JSON; writing it cannot fail.
    Digest::of(&serde_json::to_vec(prompt).unwrap_or_default())
}

/// The place of a prompt in 0..1: the same in every file, every order and every run.
pub(crate) fn place(key: &Digest) -> f64 {
    let high = key.0.iter().take(7).fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    high as f64 / (1u64 << 56) as f64
}

/// Holds out the rows whose prompt falls below `fraction`. Where `fraction` is above 0 and none does, the lowest prompt of
/// several is held out, so that a small file has something to evaluate on.
pub(crate) fn by_hash<T>(rows: Vec<Keyed<T>>, fraction: f64) -> (Vec<Keyed<T>>, Vec<Keyed<T>>) {
    let different: BTreeSet<Digest> = rows.iter().map(|row| row.key).collect();
    let none = different.iter().all(|key| place(key) >= fraction);
    let fallback = different.first().copied().filter(|_| none && fraction > 0.0 && different.len() > 1);
    rows.into_iter().partition(|row| place(&row.key) >= fraction && Some(row.key) != fallback)
}

/// The rows whose prompts are not among `eval`.
pub(crate) fn without<T, U>(rows: Vec<Keyed<T>>, eval: &[Keyed<U>]) -> Vec<Keyed<T>> {
    let held: BTreeSet<Digest> = eval.iter().map(|row| row.key).collect();
    rows.into_iter().filter(|row| !held.contains(&row.key)).collect()
}

/// Number of rows whose prompt stands in an earlier one.
pub(crate) fn repeated<T>(rows: &[Keyed<T>]) -> u64 {
    let different: BTreeSet<Digest> = rows.iter().map(|row| row.key).collect();
    (rows.len() - different.len()) as u64
}

/// At most `most` rows, drawn by another hash of their prompts; in the order in which they were.
pub(crate) fn at_most<T>(rows: Vec<Keyed<T>>, most: u64) -> Vec<Keyed<T>> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    if rows.len() <= most {
        return rows;
    }
    let lot = |(i, row): (usize, &Keyed<T>)| (Digest::of(&[&row.key.0[..], b"sample"].concat()), i);
    let mut lots: Vec<(Digest, usize)> = rows.iter().enumerate().map(lot).collect();
    lots.sort();
    let drawn: BTreeSet<usize> = lots.into_iter().take(most).map(|(_, i)| i).collect();
    rows.into_iter().enumerate().filter(|(i, _)| drawn.contains(i)).map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks(n: usize) -> Vec<Keyed<usize>> {
        let prompt = |i: usize| Prompt::Text(format!("question {}", i % 900));
        (0..n).map(|i| Keyed { key: key(&prompt(i)), row: i }).collect()
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
        let side = |n: usize| by_hash(tasks(n), 0.3).1.into_iter().map(|task| task.row).collect::<BTreeSet<_>>();
        assert!(side(200).is_subset(&side(800)));
    }

    #[test]
    fn small_files_still_hold_something_out() {
        assert_eq!(by_hash(tasks(5), 1e-9).1.len(), 1);
        assert_eq!(by_hash(tasks(5), 0.0).1.len(), 0);
        assert_eq!(by_hash(tasks(1), 1e-9).1.len(), 0, "the only prompt is to train on");
    }

    #[test]
    fn a_few_are_drawn_and_stay_in_order() {
        let few: Vec<usize> = at_most(tasks(800), 100).into_iter().map(|row| row.row).collect();
        assert_eq!(few.len(), 100);
        assert!(few.is_sorted() && few[50] > 200 && few[50] < 600, "{few:?}");
        assert_eq!(at_most(tasks(5), 9).len(), 5);
    }
}
