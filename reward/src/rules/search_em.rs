//! `search_em`: the answer is one of the right ones, both in SQuAD's form. Search-R1's reward.

use crate::qa::{Args, Compare, equal};

/// The rule.
///
/// # Errors
/// If an argument is not usable; the error names it.
pub fn new(args: Args) -> Result<Compare, String> {
    Compare::new("search_em", args, equal)
}

#[cfg(test)]
mod tests {
    use folgore_protocol::Prompt;
    use serde_json::json;

    use super::*;
    use crate::{
        Rule,
        samples::{item, total, unscorable},
    };

    #[test]
    fn the_vectors_of_search_r1() {
        // `search_r1.em` of the shared vectors
        let rule = new(Args::default()).unwrap();
        for (prediction, golden, score) in [
            ("The Beatles!", json!(["beatles"]), 1.0),
            ("Barack  Obama", json!(["obama"]), 0.0),
            ("U.S.A.", json!(["USA", "United States"]), 1.0),
            ("an apple a day", json!(["apple day"]), 1.0),
            ("Answer", json!(["answer is"]), 0.0),
            ("co-operate", json!(["cooperate"]), 1.0),
            ("", json!(["the"]), 1.0),
        ] {
            let text = format!("<think>x</think><answer> {prediction} </answer>");
            assert_eq!(total(&rule.score(&item(&text, &[("golden_answers", golden)]))), score, "{prediction}");
        }
    }

    #[test]
    fn the_block_of_the_prompt_is_none_and_the_last_one_counts() {
        // `search_r1.answer_extraction`: blocks in prompt and response together, of which the prompt holds one
        let rule = new(Args::default()).unwrap();
        let blocks = ["1st", "2nd", "3rd"].map(|text| format!("<answer>{text}</answer>"));
        for (n, extracted) in [(1, None), (2, Some("2nd")), (3, Some("3rd"))] {
            let golds = ["1st", "2nd", "3rd"];
            for gold in golds {
                let mut item = item(&blocks[1..n].concat(), &[("answer", json!(gold))]);
                item.prompt = Prompt::Text(format!("For example {}. Question: x", blocks[0]));
                let want = f64::from(u8::from(extracted == Some(gold)));
                assert_eq!(total(&rule.score(&item)), want, "{n} blocks, {gold}");
            }
        }
    }

    #[test]
    fn arguments_count_and_a_question_without_answers_is_not_scored() {
        let args = Args { tag: "final".into(), score: 2.0, format_score: 0.25, ..Args::default() };
        let rule = new(args).unwrap();
        let score = |text: &str| total(&rule.score(&item(text, &[("answer", json!("x"))])));
        assert_eq!(["<final>X</final>", "<final>y</final>", "<answer>x</answer>"].map(score), [2.0, 0.25, 0.0]);
        assert!(unscorable(rule.score(&item("<final>x</final>", &[]))).contains("golden_answers"));
        assert!(new(Args { tag: "<a>".into(), ..Args::default() }).is_err());
        assert!(new(Args { score: f64::NAN, ..Args::default() }).is_err());
    }
}
