//! Functions that follow from one sigmoid, so that they need no exponential but ours.

use super::exp;
use crate::Activation;

/// GELU by tanh is `x * sigmoid(x * (GELU_LINEAR + GELU_CUBIC * x²))`: 2 √(2/π), and that times 0.044715.
pub(super) const GELU_LINEAR: f32 = 1.595_769;
pub(super) const GELU_CUBIC: f32 = 0.071_354_814;
/// Three times the cubic one, for the slope.
pub(super) const GELU_SLOPE: f32 = 0.214_064_45;

pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `activation(x)` as `x * share`, and the slope of `activation` at x.
pub(super) fn activate(activation: Activation, x: f32) -> (f32, f32) {
    match activation {
        Activation::Silu => {
            let s = sigmoid(x);
            (s, s * (1.0 + x * (1.0 - s)))
        }
        Activation::GeluTanh => {
            let s = sigmoid(x * (x * x).mul_add(GELU_CUBIC, GELU_LINEAR));
            let slope = (x * x).mul_add(GELU_SLOPE, GELU_LINEAR);
            (s, s * (1.0 + x * slope * (1.0 - s)))
        }
    }
}

/// `cap * tanh(x / cap)`.
pub(super) fn softcap(x: f32, cap: f32) -> f32 {
    (sigmoid(x / cap * 2.0) * 2.0 - 1.0) * cap
}

/// Slope of [`softcap`] where its value is `z`.
pub(super) fn softcap_slope(z: f32, cap: f32) -> f32 {
    let t = z / cap;
    1.0 - t * t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_those_of_their_definitions() {
        for i in -2000..=2000 {
            let x = f64::from(i) / 200.0;
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let gelu = |x: f64| 0.5 * x * (1.0 + (c * (x + 0.044715 * x * x * x)).tanh());
            let (share, slope) = activate(Activation::GeluTanh, x as f32);
            assert!((f64::from(x as f32 * share) - gelu(x)).abs() < 2e-6, "gelu({x})");
            let difference = (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5;
            assert!((f64::from(slope) - difference).abs() < 2e-6, "slope of gelu at {x}: {slope} {difference}");
            let cap = |x: f64| 3.0 * (x / 3.0).tanh();
            let z = softcap(x as f32, 3.0);
            assert!((f64::from(z) - cap(x)).abs() < 1e-6, "softcap({x})");
            let difference = (cap(x + 1e-5) - cap(x - 1e-5)) / 2e-5;
            assert!((f64::from(softcap_slope(z, 3.0)) - difference).abs() < 2e-6, "slope of softcap at {x}");
        }
        assert_eq!((softcap(1e30, 30.0), softcap(-1e30, 30.0)), (30.0, -30.0));
    }
}
