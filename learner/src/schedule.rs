//! What happens to a gradient before and around AdamW: learning rate, clipping, and what to do when it is no number.
//!
//! Updates count from 0 over the whole run. Other than in the usual schedulers no update has learning rate 0: the
//! warm-up begins at its first step, not before it, and the decay ends one step after the last, so that a run of one
//! update trains.

use folgore_config::optim::{LrSchedulerType, OptimSection};

/// The learning rate as a function of the update.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    peak: f64,
    warmup: u64,
    total: u64,
    kind: LrSchedulerType,
}

impl Schedule {
    /// The schedule of a run of `total` optimiser updates.
    pub fn new(optim: &OptimSection, total: u64) -> Self {
        let warmup = match optim.warmup_steps {
            0 => (optim.warmup_ratio * total as f64).ceil() as u64,
            steps => steps,
        };
        Self { peak: optim.learning_rate, warmup, total, kind: optim.lr_scheduler_type }
    }

    /// Learning rate of update number `update`, from 0.
    pub fn learning_rate(&self, update: u64) -> f64 {
        if update < self.warmup {
            return self.peak * (update + 1) as f64 / self.warmup as f64;
        }
        let span = self.total.saturating_sub(self.warmup).max(1) as f64;
        let done = ((update - self.warmup) as f64 / span).min(1.0);
        self.peak
            * match self.kind {
                LrSchedulerType::Constant => 1.0,
                LrSchedulerType::Linear => 1.0 - done,
                LrSchedulerType::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            }
    }
}

/// What a gradient of length `norm` is multiplied with, so that it is no longer than `max_grad_norm`; 0: no limit.
///
/// The small constant is that of `torch.nn.utils.clip_grad_norm_`.
pub fn clip_factor(norm: f64, max_grad_norm: f64) -> f64 {
    if max_grad_norm > 0.0 { (max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// Updates in a row whose loss or gradient is no finite number before the run stops.
pub const MAX_NON_FINITE: u32 = 3;

/// What to do with an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Apply it.
    Apply,
    /// Leave weights and optimiser as they are, and go on.
    Skip,
    /// Stop the run: the last updates were all unusable.
    Stop,
}

/// Counts unusable updates: one may be bad luck, several in a row mean that the weights are lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NonFiniteGuard {
    in_a_row: u32,
}

impl NonFiniteGuard {
    /// Judges an update by its loss and the norm of its gradient.
    pub fn judge(&mut self, loss: f64, grad_norm: f64) -> Verdict {
        if loss.is_finite() && grad_norm.is_finite() {
            self.in_a_row = 0;
            return Verdict::Apply;
        }
        self.in_a_row += 1;
        if self.in_a_row >= MAX_NON_FINITE { Verdict::Stop } else { Verdict::Skip }
    }

    /// Unusable updates in a row so far; part of a checkpoint.
    pub fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// Goes on counting from `in_a_row`, after a resume.
    pub fn resumed(in_a_row: u32) -> Self {
        Self { in_a_row }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: LrSchedulerType, warmup_steps: u64, warmup_ratio: f64, total: u64) -> Schedule {
        let optim = OptimSection {
            learning_rate: 2.0,
            warmup_steps,
            warmup_ratio,
            lr_scheduler_type: kind,
            ..OptimSection::default()
        };
        Schedule::new(&optim, total)
    }

    #[test]
    fn warm_up_rises_evenly_and_then_the_shape_begins_at_the_peak() {
        for kind in [LrSchedulerType::Constant, LrSchedulerType::Linear, LrSchedulerType::Cosine] {
            let s = schedule(kind, 4, 0.0, 12);
            let rates: Vec<f64> = (0..5).map(|u| s.learning_rate(u)).collect();
            assert_eq!(rates, [0.5, 1.0, 1.5, 2.0, 2.0], "{kind:?}");
            assert_eq!(s, schedule(kind, 0, 0.3, 12));
        }
        assert_eq!(schedule(LrSchedulerType::Linear, 4, 0.0, 12).learning_rate(8), 1.0);
        assert!((schedule(LrSchedulerType::Cosine, 4, 0.0, 12).learning_rate(8) - 1.0).abs() < 1e-12);
        assert_eq!(schedule(LrSchedulerType::Linear, 4, 0.0, 12).learning_rate(12), 0.0);
        assert_eq!(schedule(LrSchedulerType::Constant, 0, 0.0, 12).learning_rate(1_000), 2.0);
    }

    #[test]
    fn every_update_of_a_run_learns_and_the_rate_never_rises_after_the_warm_up() {
        for kind in [LrSchedulerType::Linear, LrSchedulerType::Cosine] {
            for (warmup, total) in [(0, 1), (3, 3), (5, 3), (2, 50)] {
                let s = schedule(kind, warmup, 0.0, total);
                let rates: Vec<f64> = (0..total).map(|u| s.learning_rate(u)).collect();
                assert!(rates.iter().all(|r| *r > 0.0 && *r <= 2.0), "{kind:?} {warmup} {total}: {rates:?}");
                let after: Vec<f64> = (warmup..total).map(|u| s.learning_rate(u)).collect();
                assert!(after.windows(2).all(|w| w[1] < w[0]));
            }
        }
    }

    #[test]
    fn only_a_gradient_that_is_too_long_is_shortened() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
    }

    #[test]
    fn three_unusable_updates_in_a_row_stop_the_run() {
        let mut guard = NonFiniteGuard::default();
        assert_eq!(guard.judge(f64::NAN, 1.0), Verdict::Skip);
        assert_eq!(guard.judge(0.1, f64::INFINITY), Verdict::Skip);
        assert_eq!(guard.judge(0.1, 1.0), Verdict::Apply);
        assert_eq!(guard.judge(f64::NAN, 1.0), Verdict::Skip);
        assert_eq!(guard.judge(f64::NAN, 1.0), Verdict::Skip);
        assert_eq!(NonFiniteGuard::resumed(guard.in_a_row()).judge(f64::NAN, 1.0), Verdict::Stop);
        assert_eq!(guard.judge(f64::NAN, 1.0), Verdict::Stop);
    }
}
