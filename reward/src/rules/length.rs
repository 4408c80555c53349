//! `length`: shapes the number of tokens that the policy writes, toward a target or under a cap. At most 0.

use folgore_protocol::{Outcome, ScoreItem};
use serde::Deserialize;

use super::{expect_finite, scored_with};
use crate::Rule;

/// Arguments of `length`: exactly one of `target` and `cap`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Args {
    /// Tokens to aim at: `-factor * min(|length - target| / width, 1)`.
    pub target: Option<u32>,
    /// Tokens that are free: `-factor * min(max(length - cap, 0) / width, 1)`.
    pub cap: Option<u32>,
    /// Tokens over which the penalty grows to its full size.
    pub width: u32,
    /// Full size of the penalty.
    pub factor: f64,
}

impl Default for Args {
    fn default() -> Self {
        Self { target: None, cap: None, width: 256, factor: 1.0 }
    }
}

/// The rule.
pub struct Length(Args);

impl Length {
    /// Checks `args`; the error names the argument.
    pub fn new(args: Args) -> Result<Self, String> {
        expect_finite(&[("factor", args.factor)])?;
        if args.width == 0 {
            return Err("width: expected at least 1, got 0".into());
        }
        match (args.target, args.cap) {
            (Some(_), None) | (None, Some(_)) => Ok(Self(args)),
            (None, None) => Err("expected target or cap, got neither".into()),
            (Some(_), Some(_)) => Err("expected target or cap, got both".into()),
        }
    }
}

impl Rule for Length {
    fn name(&self) -> &str {
        "length"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        let length = item.completion_ids.len() as f64;
        let off = match (self.0.target, self.0.cap) {
            (Some(target), _) => (length - f64::from(target)).abs(),
            (None, cap) => (length - f64::from(cap.unwrap_or(u32::MAX))).max(0.0),
        };
        let share = (off / f64::from(self.0.width)).min(1.0);
        scored_with("length", 0.0 - self.0.factor * share, &[("tokens", length)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{item, total};

    fn score(args: Args, tokens: usize) -> f64 {
        let mut item = item("", &[]);
        item.completion_ids = vec![0; tokens];
        total(&Length::new(args).unwrap().score(&item))
    }

    #[test]
    fn the_penalty_grows_over_its_width_and_stops() {
        let target = Args { target: Some(100), width: 50, factor: 2.0, ..Args::default() };
        for (tokens, want) in [(100, 0.0), (75, -1.0), (125, -1.0), (150, -2.0), (0, -2.0), (1000, -2.0)] {
            assert_eq!(score(target.clone(), tokens), want, "{tokens} tokens");
        }
        let cap = Args { cap: Some(100), width: 50, ..Args::default() };
        for (tokens, want) in [(0, 0.0), (100, 0.0), (125, -0.5), (150, -1.0), (1000, -1.0)] {
            assert_eq!(score(cap.clone(), tokens), want, "{tokens} tokens");
        }
    }

    #[test]
    fn exactly_one_goal_is_given() {
        assert!(Length::new(Args::default()).is_err());
        assert!(Length::new(Args { target: Some(1), cap: Some(1), ..Args::default() }).is_err());
        assert!(Length::new(Args { cap: Some(1), width: 0, ..Args::default() }).is_err());
    }
}
