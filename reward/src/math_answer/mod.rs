//! Decides whether two answers to a mathematical question are the same.
//!
//! [`Answer::parse`] reads numbers (integers, decimals, thousands separators, fractions, mixed numbers, scientific notation,
//! percent, roots, powers, pi), expressions with letters, sets, lists, tuples, intervals and their unions, equations
//! `x = ...`, words, in plain text and in LaTeX; units after a number are left out. [`Answer::equals`] compares values, not
//! spellings: rationals exactly, irrational numbers in floating point, expressions with letters at fixed points.
//! Text that cannot be read is an error and never equal to anything, itself included.
//!
//! Rules where notations collide: `(1,2)` is a tuple or an open interval, which are written alike and hence equal; `[1,2]`,
//! `(1,2]` and `{1,2}` are other things. `1,2` without brackets is a list, equal to the set `{1,2}`. `1,234` without
//! brackets is a number; inside brackets a comma always separates. `50%` is 1/2. Work is bounded: [`MAX_BYTES`] of text,
//! [`MAX_ITEMS`] items, a nesting of [`MAX_DEPTH`], numbers of some thousand bits.

mod clean;
mod expression;
mod number;
mod structure;
mod units;

use number::Number;

/// Longest text that is read as an answer, in bytes.
pub const MAX_BYTES: usize = 2048;
/// Most items of one list.
pub const MAX_ITEMS: usize = 128;
/// Deepest nesting of brackets.
pub const MAX_DEPTH: usize = 48;

/// Why a text is not an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Nothing is written.
    #[error("expected an answer, got nothing")]
    Empty,
    /// Longer, deeper or with more items than is read.
    #[error("expected an answer of at most {limit} {what}")]
    TooLarge {
        /// The bound.
        limit: usize,
        /// What is counted.
        what: &'static str,
    },
    /// Something that this module does not read.
    #[error("cannot read {text:?}: {reason}")]
    Unreadable {
        /// The part concerned, shortened.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
}

impl AnswerError {
    pub(crate) fn unreadable(text: &str, reason: &'static str) -> Self {
        Self::Unreadable { text: text.chars().take(80).collect(), reason }
    }
}

/// How answers are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Largest relative difference where one side was written as a decimal fraction and neither is a whole number.
    pub tolerance: f64,
    /// Lets `50%` equal `50` too.
    pub percent_as_number: bool,
}

impl Default for Comparison {
    fn default() -> Self {
        Self { tolerance: 1e-6, percent_as_number: false }
    }
}

/// An answer that was understood.
#[derive(Clone, Debug)]
pub struct Answer(Value);

impl Answer {
    /// Reads `text`.
    ///
    /// # Errors
    /// If it is empty, too large, or means nothing that this module knows.
    pub fn parse(text: &str) -> Result<Self, AnswerError> {
        if text.len() > MAX_BYTES {
            return Err(AnswerError::TooLarge { limit: MAX_BYTES, what: "bytes" });
        }
        let cleaned = clean::clean(text)?;
        structure::parse(&cleaned).map(Self)
    }

    /// True if it is a single number.
    pub fn is_number(&self) -> bool {
        matches!(&self.0, Value::Scalar(scalar) if scalar.variables.is_empty())
    }

    /// A spelling that depends on the meaning alone: answers that are the same without a tolerance have the same one, so that they
    /// can be counted. `1/2`, `0.5` and `\frac{1}{2}` are `1/2`; numbers that are not rational are told by ten digits.
    pub fn canonical(&self) -> String {
        self.0.canonical()
    }

    /// True if both mean the same: reflexive and symmetric (not transitive, because of the tolerance).
    pub fn equals(&self, other: &Self, how: Comparison) -> bool {
        self.0.equals(&other.0, how)
    }
}

/// What an answer means.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A number, or an expression with letters.
    Scalar(Scalar),
    /// Words, in lower case.
    Words(String),
    /// Plus or minus infinity.
    Infinity {
        /// True for minus.
        negative: bool,
    },
    /// Things in order: a tuple, an interval, a ratio (`:` for both brackets).
    Sequence { open: char, close: char, items: Vec<Value> },
    /// Things in any order: a list without brackets, as long as it is written.
    List(Vec<Value>),
    /// Things in any order, each once.
    Set(Vec<Value>),
    /// Intervals taken together.
    Union(Vec<Value>),
    /// `name = value`, or `name` in a set.
    Named { name: String, value: Box<Value> },
}

impl Value {
    fn canonical(&self) -> String {
        let all = |items: &[Value]| items.iter().map(Value::canonical).collect::<Vec<_>>();
        let sorted = |items: &[Value]| {
            let mut items = all(items);
            items.sort_unstable();
            items
        };
        match self {
            Value::Scalar(scalar) => scalar.canonical(),
            Value::Words(words) => words.clone(),
            Value::Infinity { negative } => if *negative { "-infinity" } else { "infinity" }.to_owned(),
            Value::Sequence { open, close, items } => format!("{open}{}{close}", all(items).join(",")),
            Value::List(items) => format!("{{{}}}", sorted(items).join(",")),
            Value::Set(items) | Value::Union(items) => {
                let mut items = sorted(items);
                items.dedup();
                let kind = if matches!(self, Value::Set(_)) { "" } else { "union" };
                format!("{kind}{{{}}}", items.join(","))
            }
            // a name does not tell a value from the same without one
            Value::Named { value, .. } => value.canonical(),
        }
    }

    fn equals(&self, other: &Self, how: Comparison) -> bool {
        use Value::{Infinity, List, Named, Scalar, Sequence, Set, Union, Words};
        match (self, other) {
            (Named { name: a, value: x }, Named { name: b, value: y }) => a == b && x.equals(y, how),
            (Named { value, .. }, plain) | (plain, Named { value, .. }) => value.equals(plain, how),
            (Scalar(a), Scalar(b)) => a.equals(b, how),
            (Words(a), Words(b)) => a == b,
            (Infinity { negative: a }, Infinity { negative: b }) => a == b,
            (Sequence { open: o, close: c, items: a }, Sequence { open: p, close: d, items: b }) => {
                o == p && c == d && a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.equals(y, how))
            }
            (List(a), List(b)) => a.len() == b.len() && same_members(a, b, how),
            (Set(a) | List(a), Set(b) | List(b)) | (Union(a), Union(b)) => same_members(a, b, how),
            _ => false,
        }
    }
}

/// True if each member of one side has an equal on the other.
fn same_members(a: &[Value], b: &[Value], how: Comparison) -> bool {
    let covered = |xs: &[Value], ys: &[Value]| xs.iter().all(|x| ys.iter().any(|y| x.equals(y, how)));
    covered(a, b) && covered(b, a)
}

/// A number, or an expression with letters known by its values at fixed points.
#[derive(Clone, Debug)]
pub(crate) struct Scalar {
    /// The letters, sorted.
    pub(crate) variables: Vec<String>,
    /// Its values: one without letters, else one per point.
    pub(crate) values: Vec<Number>,
    /// True if it was written in percent; the values are divided by 100 already.
    pub(crate) percent: bool,
}

impl Scalar {
    fn canonical(&self) -> String {
        let values: Vec<String> = self.values.iter().map(Number::canonical).collect();
        match self.variables.as_slice() {
            [] => values.join(","),
            letters => format!("{}: {}", letters.join(","), values.join(",")),
        }
    }

    fn equals(&self, other: &Self, how: Comparison) -> bool {
        let same = |a: &Number, b: &Number| a.equals(b, how.tolerance);
        if self.variables != other.variables || self.values.len() != other.values.len() {
            return false;
        }
        let pairs = || self.values.iter().zip(&other.values);
        let times_hundred = |a: &Number, b: &Number| a.times(&Number::integer(100)).is_some_and(|a| same(&a, b));
        pairs().all(|(a, b)| same(a, b))
            || how.percent_as_number
                && self.percent != other.percent
                && pairs().all(|(a, b)| if self.percent { times_hundred(a, b) } else { times_hundred(b, a) })
    }
}
