//! Evaluates one expression: exact where it is rational. Letters take fixed values, so that two expressions are compared
//! by what they are worth and not by how they are written.
//!
//! ```text
//! sum     = term (("+" | "-") term)*
//! term    = signed (("*" | "/") signed | power)*          a product may be written without a sign
//! signed  = ("+" | "-")* power
//! power   = primary ("^" exponent)?
//! primary = number | letter | "(" sum ")" | "{" sum "}" | \frac a b | \sqrt[n]{a} | \pi | \greek
//! ```
//! A whole number right before a numeric `\frac`, or before `a/b` after a space, is a mixed number.

use std::collections::BTreeSet;

use folgore_protocol::seed;

use super::{AnswerError, MAX_DEPTH, number::Number, units};

/// Points at which an expression with letters is evaluated: two that differ agree at all of them about never.
pub(super) const POINTS: u64 = 3;

const GREEK: &[&str] = &[
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "varepsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "rho",
    "sigma",
    "tau",
    "phi",
    "varphi",
    "chi",
    "psi",
    "omega",
    "Gamma",
    "Delta",
    "Theta",
    "Lambda",
    "Xi",
    "Sigma",
    "Phi",
    "Psi",
    "Omega",
];

/// The value of an expression at one point.
#[derive(Debug)]
pub(super) struct Evaluated {
    /// The value.
    pub(super) value: Number,
    /// The letters in it, sorted.
    pub(super) variables: Vec<String>,
    /// What follows the expression.
    pub(super) rest: String,
}

/// Evaluates the expression that `text` begins with at point number `point`.
pub(super) fn evaluate(text: &str, point: u64) -> Result<Evaluated, AnswerError> {
    let mut parser = Parser { text, at: 0, depth: 0, point, variables: BTreeSet::new() };
    let value = parser.sum()?;
    let rest = parser.rest().to_owned();
    Ok(Evaluated { value, variables: parser.variables.into_iter().collect(), rest })
}

type Result<T, E = AnswerError> = std::result::Result<T, E>;

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    point: u64,
    variables: BTreeSet<String>,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn error<T>(&self, reason: &'static str) -> Result<T> {
        Err(AnswerError::unreadable(self.rest(), reason))
    }

    fn skip_spaces(&mut self) {
        self.at = self.text.len() - self.rest().trim_start_matches(' ').len();
    }

    /// The next character that is not a space.
    fn peek(&mut self) -> Option<char> {
        self.skip_spaces();
        self.rest().chars().next()
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip_spaces();
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn defined(&self, value: Option<Number>) -> Result<Number> {
        value.map_or_else(|| self.error("not a real number, or too large"), Ok)
    }

    fn nested(&mut self, parse: impl FnOnce(&mut Self) -> Result<Number>) -> Result<Number> {
        if self.depth >= MAX_DEPTH {
            return Err(AnswerError::TooLarge { limit: MAX_DEPTH, what: "levels" });
        }
        self.depth += 1;
        let value = parse(self);
        self.depth -= 1;
        value
    }

    fn sum(&mut self) -> Result<Number> {
        self.nested(|p| {
            let mut value = p.term()?;
            loop {
                value = if p.eat("+") {
                    let term = p.term()?;
                    p.defined(value.plus(&term))?
                } else if p.eat("-") {
                    let term = p.term()?;
                    p.defined(value.minus(&term))?
                } else {
                    return Ok(value);
                };
            }
        })
    }

    fn term(&mut self) -> Result<Number> {
        let mut value = self.signed()?;
        loop {
            value = if self.eat("*") {
                let factor = self.signed()?;
                self.defined(value.times(&factor))?
            } else if self.eat("/") {
                let divisor = self.signed()?;
                self.defined(value.over(&divisor))?
            } else if self.factor_follows() {
                let factor = self.power()?;
                self.defined(value.times(&factor))?
            } else {
                return Ok(value);
            };
        }
    }

    fn signed(&mut self) -> Result<Number> {
        let mut negative = false;
        loop {
            if self.eat("-") {
                negative = !negative;
            } else if !self.eat("+") {
                let value = self.power()?;
                return Ok(if negative { value.negated() } else { value });
            }
        }
    }

    /// True if a product goes on without a sign: a bracket, a command or letters that are not a unit.
    fn factor_follows(&mut self) -> bool {
        let tight = !self.rest().starts_with(' ');
        match self.peek() {
            Some('(' | '{' | '\\' | 'π' | '√') => true,
            Some(c) if c.is_ascii_alphabetic() => {
                let run = self.letters();
                match run.len() {
                    _ if run == "pi" || run == "sqrt" || run.len() == 1 => true,
                    2 | 3 => tight && !units::is_short_unit(run),
                    _ => false,
                }
            }
            _ => false,
        }
    }

    fn letters(&self) -> &'a str {
        let rest = self.rest();
        &rest[..rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len())]
    }

    fn power(&mut self) -> Result<Number> {
        let base = self.primary()?;
        if !self.eat("^") {
            return Ok(base);
        }
        let exponent = self.nested(Self::exponent)?;
        self.defined(base.power(&exponent))
    }

    /// After `^`: a signed number in full (`10^-3`, `2^10`) or anything that stands alone (`x^{n+1}`, `e^x`).
    fn exponent(&mut self) -> Result<Number> {
        let negative = self.eat("-");
        let value = match self.peek() {
            Some(c) if c.is_ascii_digit() => {
                let digits = self.digits();
                self.defined(Number::literal(digits, "", 0))?
            }
            _ => self.argument()?,
        };
        Ok(if negative { value.negated() } else { value })
    }

    fn primary(&mut self) -> Result<Number> {
        match self.peek() {
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some('\\') => self.command(),
            Some('π') => self.circle('π'.len_utf8()),
            Some('√') => {
                self.at += '√'.len_utf8();
                let radicand = self.nested(Self::primary)?;
                self.defined(radicand.root(&Number::integer(2)))
            }
            Some(c) if c.is_ascii_alphabetic() => match self.letters() {
                "pi" => self.circle(2),
                "sqrt" => {
                    self.at += 4;
                    if self.peek() != Some('(') {
                        return self.error("expected ( after sqrt");
                    }
                    let radicand = self.bracket()?;
                    self.defined(radicand.root(&Number::integer(2)))
                }
                run if run.len() > 3 => self.error("unknown word"),
                _ => self.variable(1),
            },
            Some('(' | '{') => self.bracket(),
            _ => self.error("expected a number, a letter or a bracket"),
        }
    }

    fn circle(&mut self, len: usize) -> Result<Number> {
        self.at += len;
        Ok(Number::pi())
    }

    fn bracket(&mut self) -> Result<Number> {
        let close = if self.eat("(") {
            ")"
        } else if self.eat("{") {
            "}"
        } else {
            return self.error("expected a bracket");
        };
        let value = self.sum()?;
        if self.eat(close) { Ok(value) } else { self.error("expected the end of a bracket") }
    }

    /// What TeX takes as one argument: a group, a command, one letter or one digit.
    fn argument(&mut self) -> Result<Number> {
        match self.peek() {
            Some(c) if c.is_ascii_digit() => {
                let digit = &self.rest()[..1];
                self.at += 1;
                self.defined(Number::literal(digit, "", 0))
            }
            Some('{' | '(' | '\\' | 'π') => self.nested(Self::primary),
            Some(c) if c.is_ascii_alphabetic() => self.variable(1),
            _ => self.error("expected an argument"),
        }
    }

    fn command(&mut self) -> Result<Number> {
        let name = &self.rest()[1..];
        let name = &name[..name.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(name.len())];
        if name == "frac" {
            self.at += "\\frac".len();
            let (numerator, denominator) = (self.argument()?, self.argument()?);
            return self.defined(numerator.over(&denominator));
        }
        if name == "sqrt" {
            self.at += "\\sqrt".len();
            let mut degree = Number::integer(2);
            if self.eat("[") {
                degree = self.sum()?;
                if !self.eat("]") {
                    return self.error("expected the end of the degree of a root");
                }
            }
            let radicand = self.argument()?;
            return self.defined(radicand.root(&degree));
        }
        if GREEK.contains(&name) { self.variable(1 + name.len()) } else { self.error("unknown command") }
    }

    /// The value of the variable whose name takes `len` bytes, and its subscript.
    fn variable(&mut self, len: usize) -> Result<Number> {
        let mut name = self.rest()[..len].to_owned();
        self.at += len;
        if let Some(after) = self.rest().strip_prefix('_') {
            let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
            let (subscript, taken) = match braced {
                Some((inner, _)) => (inner, inner.len() + 3),
                None => match after.chars().next().filter(char::is_ascii_alphanumeric) {
                    Some(_) => (&after[..1], 2),
                    None => return self.error("expected a subscript"),
                },
            };
            name = format!("{name}_{}", subscript.trim());
            self.at += taken;
        }
        let bytes = name.bytes().map(u64::from).collect::<Vec<_>>();
        // Positive, so that roots of letters are real; an odd denominator keeps it from cancelling.
        let value = Number::ratio(3 + seed::below(seed::mix(&bytes), self.point, 499) as i64, 7);
        self.variables.insert(name);
        self.defined(value)
    }

    fn digits(&mut self) -> &'a str {
        let rest = self.rest();
        let len = rest.bytes().take_while(u8::is_ascii_digit).count();
        self.at += len;
        &rest[..len]
    }

    fn number(&mut self) -> Result<Number> {
        let whole = self.digits();
        let mut fraction = "";
        let dot = self.rest().starts_with('.');
        if dot {
            self.at += 1;
            fraction = self.digits();
            if whole.is_empty() && fraction.is_empty() {
                return self.error("expected digits");
            }
        }
        let exponent = self.decimal_exponent();
        let value = self.defined(Number::literal(whole, fraction, exponent.unwrap_or(0)))?;
        if dot || exponent.is_some() {
            return Ok(value);
        }
        match self.mixed_fraction() {
            Some(fraction) => self.defined(value.plus(&fraction)),
            None => Ok(value),
        }
    }

    /// `e5`, `E-5`, `e+5`; an `e` that no digits follow is a letter.
    fn decimal_exponent(&mut self) -> Option<i32> {
        let after = self.rest().strip_prefix(['e', 'E'])?;
        let (sign, digits) = match after.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, after.strip_prefix('+').unwrap_or(after)),
        };
        let len = digits.bytes().take_while(u8::is_ascii_digit).count();
        if len == 0 {
            return None;
        }
        self.at = self.text.len() - digits.len() + len;
        // What does not fit is far beyond the range of exponents, which refuses it.
        Some(sign * digits[..len].parse::<i32>().unwrap_or(i32::MAX))
    }

    /// The fraction after a whole number: `\frac{1}{2}` of digits, or `1/2` after a space.
    fn mixed_fraction(&mut self) -> Option<Number> {
        let before = self.at;
        let fraction = self.latex_fraction().or_else(|| {
            self.at = before;
            self.slash_fraction()
        });
        if fraction.is_none() {
            self.at = before;
        }
        fraction
    }

    fn latex_fraction(&mut self) -> Option<Number> {
        if !self.eat("\\frac") {
            return None;
        }
        let (numerator, denominator) = (self.digits_argument()?, self.digits_argument()?);
        numerator.over(&denominator)
    }

    fn digits_argument(&mut self) -> Option<Number> {
        self.skip_spaces();
        let rest = self.rest();
        let digits = match rest.strip_prefix('{') {
            Some(inner) => inner.split_once('}')?.0,
            None => rest.get(..1)?,
        };
        self.at += digits.len() + if rest.starts_with('{') { 2 } else { 0 };
        let digits = digits.trim();
        let all = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        all.then(|| Number::literal(digits, "", 0)).flatten()
    }

    fn slash_fraction(&mut self) -> Option<Number> {
        if !self.rest().starts_with(' ') {
            return None;
        }
        self.skip_spaces();
        let numerator = self.digits();
        if numerator.is_empty() || !self.eat("/") {
            return None;
        }
        self.skip_spaces();
        let denominator = self.digits();
        if denominator.is_empty() {
            return None;
        }
        Number::literal(numerator, "", 0)?.over(&Number::literal(denominator, "", 0)?)
    }
}
