//! Folgore with a reward in Rust: the whole response is a think block and an answer block, and the answer is right.

use std::process::ExitCode;

use folgore_deploy::{
    Folgore,
    reward::{Args, Outcome, Rule, ScoreItem},
};

struct Exact;

impl Exact {
    /// Arguments come from the run's configuration; what is refused here is told before anything starts.
    fn new(args: &Args) -> Result<Self, String> {
        args.keys().next().map_or(Ok(Self), |name| Err(format!("unknown argument {name}")))
    }
}

/// The digits of `<think>...</think><answer>digits</answer>`.
fn answer(completion: &str) -> Option<&str> {
    let (thought, rest) = completion.strip_prefix("<think>")?.split_once("</think><answer>")?;
    let answer = rest.strip_suffix("</answer>")?;
    let digits = !answer.is_empty() && answer.chars().all(|c| c.is_ascii_digit());
    (digits && !thought.contains('<')).then_some(answer)
}

impl Rule for Exact {
    fn name(&self) -> &str {
        "exact"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        let Some(right) = item.columns.get("answer").and_then(|answer| answer.as_str()) else {
            return Outcome::Unscorable { reason: "the row has no answer".into() };
        };
        let well = !item.stop_reason.truncated() && answer(&item.completion) == Some(right);
        Outcome::scored("exact", f64::from(u8::from(well)))
    }
}

fn main() -> ExitCode {
    Folgore::new().rule("exact", Exact::new).main()
}
