//! A number as an answer states it: exact where it is rational, floating point where it is not.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

/// Most bits of numerator and denominator together; results beyond are not numbers that anybody answers with.
const MAX_BITS: u64 = 4096;
/// Largest exponent of ten in scientific notation.
const MAX_DECIMAL_EXPONENT: i32 = 1000;
/// Relative error that floating-point evaluation may leave between equal irrational numbers.
const FLOAT_TOLERANCE: f64 = 1e-9;

/// A finite number.
#[derive(Clone, Debug)]
pub(crate) enum Number {
    /// A rational; `decimal` if a decimal fraction went into it and it is not whole.
    Exact { value: BigRational, decimal: bool },
    /// Anything else; `decimal` if a decimal fraction went into it.
    Real { value: f64, decimal: bool },
}

impl Number {
    /// The whole number `value`.
    pub(crate) fn integer(value: i64) -> Self {
        Self::Exact { value: BigRational::from_integer(value.into()), decimal: false }
    }

    /// `numerator / denominator`; none if that is not a number.
    pub(crate) fn ratio(numerator: i64, denominator: i64) -> Option<Self> {
        Self::integer(numerator).over(&Self::integer(denominator))
    }

    /// The circle constant.
    pub(crate) fn pi() -> Self {
        Self::Real { value: std::f64::consts::PI, decimal: false }
    }

    /// Reads digits with their fraction and an exponent of ten, all ASCII digits.
    pub(crate) fn literal(whole: &str, fraction: &str, exponent: i32) -> Option<Self> {
        if exponent.abs() > MAX_DECIMAL_EXPONENT {
            return None;
        }
        let digits: BigInt = format!("0{whole}{fraction}").parse().ok()?;
        let scale = exponent - i32::try_from(fraction.len()).ok()?;
        let power = BigInt::from(10u8).pow(scale.unsigned_abs());
        let value =
            if scale >= 0 { BigRational::from_integer(digits * power) } else { BigRational::new(digits, power) };
        Self::exact(value, true)
    }

    pub(crate) fn plus(&self, other: &Self) -> Option<Self> {
        self.combine(other, |a, b| Some(a + b), |a, b| Some(a + b))
    }

    pub(crate) fn minus(&self, other: &Self) -> Option<Self> {
        self.plus(&other.negated())
    }

    pub(crate) fn times(&self, other: &Self) -> Option<Self> {
        self.combine(other, |a, b| Some(a * b), |a, b| normal(a * b, a == 0.0 || b == 0.0))
    }

    /// The quotient; none when dividing by zero.
    pub(crate) fn over(&self, other: &Self) -> Option<Self> {
        self.combine(
            other,
            |a, b| (!b.is_zero()).then(|| a / b),
            |a, b| (b != 0.0).then_some(()).and_then(|()| normal(a / b, a == 0.0)),
        )
    }

    pub(crate) fn negated(&self) -> Self {
        match self.clone() {
            Self::Exact { value, decimal } => Self::Exact { value: -value, decimal },
            Self::Real { value, decimal } => Self::Real { value: -value, decimal },
        }
    }

    /// The power; none if it is not a real number, not defined (0^0) or too large.
    pub(crate) fn power(&self, exponent: &Self) -> Option<Self> {
        if let (Self::Exact { value: base, .. }, Self::Exact { value: e, .. }) = (self, exponent) {
            let (p, q) = (e.numer().to_i32()?, e.denom().to_u32()?);
            if let Some(root) = self.exact_root(q) {
                return root.exact_power(p);
            }
            // An odd root of a negative number is real, which `powf` does not know.
            if base.is_negative() && q % 2 == 1 {
                let size = self.negated().power(exponent)?;
                return Some(if p % 2 == 0 { size } else { size.negated() });
            }
        }
        let (a, b) = (self.to_f64()?, exponent.to_f64()?);
        let value = normal(a.powf(b), a == 0.0)?;
        (a != 0.0 || b > 0.0).then_some(Self::Real { value, decimal: self.is_decimal() || exponent.is_decimal() })
    }

    /// The root of degree `degree`.
    pub(crate) fn root(&self, degree: &Self) -> Option<Self> {
        self.power(&Self::integer(1).over(degree)?)
    }

    /// True if both are the same number: exactly if both are exact and none is a decimal fraction or one is whole, else
    /// within a relative difference: `tolerance` where a decimal fraction takes part, that of floating point elsewhere.
    pub(crate) fn equals(&self, other: &Self, tolerance: f64) -> bool {
        let decimal = self.is_decimal() || other.is_decimal();
        match (self, other) {
            (Self::Exact { value: a, .. }, Self::Exact { value: b, .. }) => {
                a == b || decimal && !a.is_integer() && !b.is_integer() && close(a, b, tolerance)
            }
            _ => {
                let (Some(a), Some(b)) = (self.to_f64(), other.to_f64()) else { return false };
                let tolerance = if decimal { tolerance.max(FLOAT_TOLERANCE) } else { FLOAT_TOLERANCE };
                (a - b).abs() <= tolerance * a.abs().max(b.abs())
            }
        }
    }

    /// A spelling that equal numbers share: a reduced fraction, or ten digits of what is not rational.
    pub(crate) fn canonical(&self) -> String {
        match self {
            Self::Exact { value, .. } => value.to_string(),
            // minus zero is zero
            Self::Real { value, .. } => format!("{:.9e}", value + 0.0),
        }
    }

    fn is_decimal(&self) -> bool {
        match self {
            Self::Exact { decimal, .. } | Self::Real { decimal, .. } => *decimal,
        }
    }

    /// The nearest double; none if that is infinite, or zero for a number that is not.
    fn to_f64(&self) -> Option<f64> {
        match self {
            Self::Exact { value, .. } => normal(value.to_f64()?, value.is_zero()),
            Self::Real { value, .. } => Some(*value),
        }
    }

    fn combine(
        &self,
        other: &Self,
        exact: impl Fn(&BigRational, &BigRational) -> Option<BigRational>,
        real: impl Fn(f64, f64) -> Option<f64>,
    ) -> Option<Self> {
        let decimal = self.is_decimal() || other.is_decimal();
        match (self, other) {
            (Self::Exact { value: a, .. }, Self::Exact { value: b, .. }) => Self::exact(exact(a, b)?, decimal),
            _ => {
                let value = real(self.to_f64()?, other.to_f64()?)?;
                value.is_finite().then_some(Self::Real { value, decimal })
            }
        }
    }

    fn exact(value: BigRational, decimal: bool) -> Option<Self> {
        let decimal = decimal && !value.is_integer();
        (bits(&value) <= MAX_BITS).then_some(Self::Exact { value, decimal })
    }

    /// The root of degree `degree`, if it is rational.
    fn exact_root(&self, degree: u32) -> Option<Self> {
        let Self::Exact { value, decimal } = self else { return None };
        if degree == 1 {
            return Some(self.clone());
        }
        if value.is_negative() && degree.is_multiple_of(2) {
            return None;
        }
        let (n, d) = (value.numer().nth_root(degree), value.denom().nth_root(degree));
        let exact = Pow::pow(&n, degree) == *value.numer() && Pow::pow(&d, degree) == *value.denom();
        exact.then(|| Self::exact(BigRational::new(n, d), *decimal)).flatten()
    }

    fn exact_power(&self, exponent: i32) -> Option<Self> {
        let Self::Exact { value, decimal } = self else { return None };
        if value.is_zero() {
            return (exponent > 0).then(|| self.clone());
        }
        let unit = value.numer().magnitude().is_one() && value.denom().is_one();
        if !unit && bits(value).saturating_mul(exponent.unsigned_abs().into()) > 2 * MAX_BITS {
            return None;
        }
        let power = if unit { exponent % 2 } else { exponent };
        Self::exact(value.pow(power), *decimal)
    }
}

fn bits(value: &BigRational) -> u64 {
    value.numer().bits() + value.denom().bits()
}

/// `value` if it kept its precision: finite, and not shrunk to (almost) nothing unless it is zero by right.
fn normal(value: f64, zero: bool) -> Option<f64> {
    (value.is_normal() || zero && value == 0.0).then_some(value)
}

/// True if `|a - b| <= tolerance * max(|a|, |b|)`, computed exactly.
fn close(a: &BigRational, b: &BigRational, tolerance: f64) -> bool {
    BigRational::from_float(tolerance).is_some_and(|t| (a - b).abs() <= t * a.abs().max(b.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(value: i64) -> Number {
        Number::integer(value)
    }

    fn same(a: &Number, b: &Number) -> bool {
        a.equals(b, 1e-6)
    }

    #[test]
    fn rationals_stay_exact() {
        let third = Number::ratio(1, 3).unwrap();
        assert!(same(&third.times(&n(3)).unwrap(), &n(1)));
        let big = n(10).power(&n(40)).unwrap();
        assert!(!same(&big, &big.plus(&n(1)).unwrap()), "40 digits are told apart");
        assert!(same(
            &Number::ratio(27, 8).unwrap().power(&Number::ratio(-2, 3).unwrap()).unwrap(),
            &Number::ratio(4, 9).unwrap()
        ));
    }

    #[test]
    fn decimals_meet_fractions_within_the_tolerance_and_whole_numbers_exactly() {
        let third = Number::ratio(1, 3).unwrap();
        assert!(same(&Number::literal("0", "3333333", 0).unwrap(), &third));
        assert!(!same(&Number::literal("0", "3333", 0).unwrap(), &third));
        assert!(!same(&Number::literal("1000000", "5", 0).unwrap(), &n(1_000_001)));
        assert!(same(&Number::literal("5", "000", 0).unwrap(), &n(5)));
    }

    #[test]
    fn what_is_not_a_real_number_is_none() {
        assert!(n(1).over(&n(0)).is_none());
        assert!(n(0).power(&n(0)).is_none());
        assert!(n(0).power(&n(-1)).is_none());
        assert!(n(-4).root(&n(2)).is_none());
        assert!(n(2).root(&n(0)).is_none());
        assert!(n(10).power(&n(100_000)).is_none());
        assert!(Number::pi().power(&n(100_000)).is_none());
        assert!(Number::pi().power(&n(-100_000)).is_none(), "shrinks to nothing");
        assert!(Number::literal("1", "", 1001).is_none());
        assert!(same(&n(-8).root(&n(3)).unwrap(), &n(-2)));
        assert!(n(-2).root(&n(3)).is_some_and(|r| same(&r.power(&n(3)).unwrap(), &n(-2))));
    }

    #[test]
    fn large_literals_do_not_meet() {
        let a = Number::literal("1", "", 308).unwrap();
        assert!(same(&a, &n(10).power(&n(308)).unwrap()));
        assert!(!same(&a, &Number::literal("1", "", 309).unwrap()));
        let (tiny, tinier) = (Number::literal("5", "", -400).unwrap(), Number::literal("7", "", -400).unwrap());
        assert!(!same(&tiny, &tinier), "both are zero as doubles");
    }
}
