//! `search_f1`: how many words the answer and the nearest right one have in common, as SQuAD counts them.

use std::collections::HashMap;

use crate::qa::{Args, Compare, equal};

/// The rule.
///
/// # Errors
/// If an argument is not usable; the error names it.
pub fn new(args: Args) -> Result<Compare, String> {
    Compare::new("search_f1", args, f1)
}

/// Harmonic mean of the shares of words that are in the other text, too. Where one has none, both must.
fn f1(answer: &str, gold: &str) -> f64 {
    let mut words: HashMap<&str, i64> = HashMap::new();
    gold.split_whitespace().for_each(|word| *words.entry(word).or_default() += 1);
    let (given, wanted) = (answer.split_whitespace().count(), gold.split_whitespace().count());
    if given == 0 || wanted == 0 {
        return equal(answer, gold);
    }
    let mut same = 0;
    for word in answer.split_whitespace() {
        if let Some(left) = words.get_mut(word).filter(|left| **left > 0) {
            *left -= 1;
            same += 1;
        }
    }
    2.0 * f64::from(same) / (given + wanted) as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        Rule,
        samples::{item, total},
    };

    #[test]
    fn words_in_common_count_once_each() {
        let rule = new(Args::default()).unwrap();
        for (answer, gold, want) in [
            ("The Beatles", json!(["beatles"]), 1.0),
            ("Barack Obama", json!(["obama"]), 2.0 / 3.0),
            ("obama obama", json!(["obama"]), 2.0 / 3.0),
            ("new york city", json!(["york", "New York"]), 0.8),
            ("Paris", json!(["London"]), 0.0),
            ("the", json!(["a"]), 1.0),
            ("the", json!(["x"]), 0.0),
        ] {
            let text = format!("<answer>{answer}</answer>");
            let got = total(&rule.score(&item(&text, &[("golden_answers", gold)])));
            assert!((got - want).abs() < 1e-12, "{answer}: expected {want}, got {got}");
        }
    }
}
