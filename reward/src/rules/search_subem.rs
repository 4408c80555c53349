//! `search_subem`: the answer holds one of the right ones, both in SQuAD's form. Lenient: an answer that lists everything wins.

use crate::qa::{Args, Compare, equal};

/// The rule.
///
/// # Errors
/// If an argument is not usable; the error names it.
pub fn new(args: Args) -> Result<Compare, String> {
    Compare::new("search_subem", args, holds)
}

/// 1 if `gold` stands in `answer`. A right answer of which nothing is left is in every text, and so must be the whole one.
fn holds(answer: &str, gold: &str) -> f64 {
    if gold.is_empty() { equal(answer, gold) } else { f64::from(u8::from(answer.contains(gold))) }
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
    fn a_part_will_do() {
        let rule = new(Args::default()).unwrap();
        for (answer, gold, want) in [
            ("Barack  Obama", json!(["obama"]), 1.0),
            ("obama", json!(["Barack Obama"]), 0.0),
            ("the U.S. of A.", json!(["x", "us"]), 1.0),
            ("anything", json!(["the"]), 0.0),
            ("the", json!(["a"]), 1.0),
        ] {
            let text = format!("<answer>{answer}</answer>");
            assert_eq!(total(&rule.score(&item(&text, &[("golden_answers", gold)]))), want, "{answer}");
        }
        assert_eq!(total(&rule.score(&item("obama", &[("answer", json!("obama"))]))), 0.0, "no answer was given");
    }
}
