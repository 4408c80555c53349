//! `soft_overlong_punishment`: DAPO's penalty for completions that come near the limit.
//!
//! `min(-(length - (L_max - B)) / B * factor, 0)` (verl, release v0.6.1, `workers/reward_manager/dapo.py`): nothing up to
//! `L_max - B` tokens, then a ramp down to `-factor` at `L_max`.

use folgore_protocol::{Outcome, ScoreItem};
use serde::Deserialize;

use super::expect_finite;
use crate::Rule;

/// Arguments of `soft_overlong_punishment`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// `L_max`, in tokens: the limit on new tokens.
    pub max_completion_length: u32,
    /// `B`, in tokens: the ramp before the limit.
    pub buffer: u32,
    /// Penalty at the limit.
    #[serde(default = "one")]
    pub factor: f64,
}

fn one() -> f64 {
    1.0
}

/// The rule.
#[derive(Debug)]
pub struct SoftOverlongPunishment(Args);

impl SoftOverlongPunishment {
    /// Checks `args`; the error names the argument.
    pub fn new(args: Args) -> Result<Self, String> {
        expect_finite(&[("factor", args.factor)])?;
        if args.factor < 0.0 {
            return Err(format!("factor: expected 0 or more, got {}", args.factor));
        }
        if args.buffer == 0 || args.buffer > args.max_completion_length {
            let limit = args.max_completion_length;
            return Err(format!("buffer: expected 1 to max_completion_length ({limit}), got {}", args.buffer));
        }
        Ok(Self(args))
    }

    /// The penalty for a completion of `tokens`, at most 0.
    pub fn penalty(&self, tokens: usize) -> f64 {
        let buffer = f64::from(self.0.buffer);
        let over = tokens as f64 - (f64::from(self.0.max_completion_length) - buffer);
        if over > 0.0 { -over / buffer * self.0.factor } else { 0.0 }
    }
}

impl Rule for SoftOverlongPunishment {
    fn name(&self) -> &str {
        "soft_overlong_punishment"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        Outcome::scored(self.name(), self.penalty(item.completion_ids.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(max_completion_length: u32, buffer: u32) -> Result<SoftOverlongPunishment, String> {
        SoftOverlongPunishment::new(Args { max_completion_length, buffer, factor: 1.0 })
    }

    #[test]
    fn the_vectors_grpo_dapo_overlong_hold() {
        let rule = rule(20480, 4096).unwrap();
        for (tokens, want) in [(1, 0.0), (16384, 0.0), (16385, -0.000244140625), (18432, -0.5), (20480, -1.0)] {
            assert_eq!(rule.penalty(tokens), want, "{tokens} tokens");
        }
    }

    #[test]
    fn the_buffer_fits_in_the_limit() {
        assert!(rule(10, 0).is_err());
        assert!(rule(10, 11).unwrap_err().contains("buffer"));
        assert_eq!(rule(10, 10).unwrap().penalty(5), -0.5);
    }
}
