//! `think_format`: the completion thinks in one block and then answers, as TRL's `think_format_reward` asks, stricter by
//! the answer block. 1 if the form holds, else 0.

use folgore_protocol::{Outcome, ScoreItem};
use serde::Deserialize;

use super::expect_tag;
use crate::Rule;

/// Arguments of `think_format`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Args {
    /// Tag of the thinking block.
    pub think: String,
    /// Tag of the answer block; null: any text may follow the thinking.
    pub answer: Option<String>,
    /// The opening think tag stands at the end of the prompt, not in the completion.
    pub prefilled: bool,
    /// A completion that was cut off breaks the form.
    pub require_eos: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self { think: "think".into(), answer: Some("answer".into()), prefilled: false, require_eos: true }
    }
}

/// The rule.
pub struct ThinkFormat(Args);

impl ThinkFormat {
    /// Checks `args`; the error names the argument.
    pub fn new(args: Args) -> Result<Self, String> {
        expect_tag("think", &args.think)?;
        if let Some(answer) = &args.answer {
            expect_tag("answer", answer)?;
            if *answer == args.think {
                return Err(format!("answer: expected another tag than think, got {answer:?}"));
            }
        }
        Ok(Self(args))
    }

    fn holds(&self, item: &ScoreItem) -> bool {
        let args = &self.0;
        if args.require_eos && item.stop_reason.truncated() {
            return false;
        }
        let text = item.completion.trim();
        let text = if args.prefilled { Some(text) } else { text.strip_prefix(&opening(&args.think)) };
        let Some((thought, rest)) = text.and_then(|t| t.split_once(&closing(&args.think))) else { return false };
        let rest = rest.trim();
        let final_part = match &args.answer {
            None => Some(rest),
            Some(tag) => rest.strip_prefix(&opening(tag)).and_then(|r| r.strip_suffix(&closing(tag))),
        };
        final_part.is_some_and(|answer| !answer.trim().is_empty() && self.is_plain(thought) && self.is_plain(answer))
    }

    /// True if `text` has none of the tags.
    fn is_plain(&self, text: &str) -> bool {
        let tags = std::iter::once(&self.0.think).chain(&self.0.answer);
        tags.flat_map(|tag| [opening(tag), closing(tag)]).all(|tag| !text.contains(&tag))
    }
}

fn opening(tag: &str) -> String {
    format!("<{tag}>")
}

fn closing(tag: &str) -> String {
    format!("</{tag}>")
}

impl Rule for ThinkFormat {
    fn name(&self) -> &str {
        "think_format"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        Outcome::scored("think_format", if self.holds(item) { 1.0 } else { 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use folgore_protocol::StopReason;

    use super::*;
    use crate::samples::{item, total};

    #[test]
    fn one_thought_then_one_answer() {
        let rule = ThinkFormat::new(Args::default()).unwrap();
        let score = |text: &str| total(&rule.score(&item(text, &[])));
        assert_eq!(score("<think>a < b</think>\n<answer>7</answer>\n"), 1.0);
        assert_eq!(score("<think></think><answer>7</answer>"), 1.0);
        for bad in [
            "",
            "7",
            "<think>a</think>7",
            "<think>a</think><answer>7</answer> so",
            "so <think>a</think><answer>7</answer>",
            "<think>a</think> so <answer>7</answer>",
            "<think>a</think><answer> </answer>",
            "<think><think>a</think><answer>7</answer>",
            "<think>a</think></think><answer>7</answer>",
            "<think>a</think><answer>7</answer><answer>8</answer>",
            "<think><answer>6</answer></think><answer>7</answer>",
            "<answer>7</answer><think>a</think>",
            "<think>a</think><answer>7",
        ] {
            assert_eq!(score(bad), 0.0, "{bad}");
        }
        let mut cut = item("<think></think><answer>7</answer>", &[]);
        cut.stop_reason = StopReason::Length;
        assert_eq!(total(&rule.score(&cut)), 0.0);
    }

    #[test]
    fn the_answer_block_and_the_first_tag_are_optional() {
        let free = ThinkFormat::new(Args { answer: None, prefilled: true, ..Args::default() }).unwrap();
        assert_eq!(total(&free.score(&item("a</think> 7", &[]))), 1.0);
        assert_eq!(total(&free.score(&item("<think>a</think> 7", &[]))), 0.0, "opened twice");
        assert_eq!(total(&free.score(&item("a 7", &[]))), 0.0);
        assert!(ThinkFormat::new(Args { answer: Some("think".into()), ..Args::default() }).is_err());
    }
}
