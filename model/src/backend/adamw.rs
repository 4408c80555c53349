//! AdamW as PyTorch computes it (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019).

use super::AdamW;

/// The numbers of one step that are the same for every parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamWStep {
    grad_scale: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    keep: f32,
    step_size: f32,
    root_correction2: f32,
    eps: f32,
}

impl AdamW {
    /// Bias corrections in f64, the rest in f32.
    pub(crate) fn constants(&self) -> AdamWStep {
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(self.step as f64);
        AdamWStep {
            grad_scale: self.grad_scale,
            beta1: self.beta1,
            beta2: self.beta2,
            one_minus_beta1: 1.0 - self.beta1,
            one_minus_beta2: 1.0 - self.beta2,
            keep: 1.0 - self.lr * self.weight_decay,
            step_size: (f64::from(self.lr) / correction(self.beta1)) as f32,
            root_correction2: correction(self.beta2).sqrt() as f32,
            eps: self.eps,
        }
    }
}

impl AdamWStep {
    /// New parameter, first and second moment.
    #[inline(always)]
    pub(crate) fn apply(&self, param: f32, grad: f32, m: f32, v: f32) -> (f32, f32, f32) {
        let grad = grad * self.grad_scale;
        let m = self.beta1 * m + self.one_minus_beta1 * grad;
        let v = self.beta2 * v + self.one_minus_beta2 * (grad * grad);
        let denominator = v.sqrt() / self.root_correction2 + self.eps;
        (param * self.keep - self.step_size * (m / denominator), m, v)
    }
}
