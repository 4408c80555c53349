//! `countdown`: an arithmetic expression that uses the given numbers and equals the target.
//!
//! The expression has whole numbers, `+ - * /` and parentheses, is read by a parser of its own and computed exactly; a
//! trailing `= n` is allowed and must then be true.

use folgore_protocol::{Outcome, ScoreItem};
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::Zero;
use serde::Deserialize;
use serde_json::Value;

use super::{expect_finite, expect_tag, scored_with};
use crate::{Rule, columns, extract, text};

/// Longest expression that is read, in bytes.
const MAX_EXPRESSION: usize = 1024;
/// Deepest nesting of parentheses.
const MAX_DEPTH: usize = 64;
/// Longest whole number, in digits.
const MAX_DIGITS: usize = 18;

/// How often the given numbers are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// Each exactly once.
    ExactlyOnce,
    /// Each at most once.
    AtMostOnce,
}

/// Arguments of `countdown`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Args {
    /// Column of the given numbers.
    pub numbers: String,
    /// Column of the target.
    pub target: String,
    /// Tag of the answer; null: the whole completion.
    pub tag: Option<String>,
    /// How often the numbers are used.
    pub uses: Use,
    /// More complete answers than this are malformed.
    pub max_answers: usize,
    /// Score of a right expression.
    pub correct_score: f64,
    /// Score of an expression that uses the numbers rightly and has another value.
    pub format_score: f64,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            numbers: "numbers".into(),
            target: "target".into(),
            tag: Some("answer".into()),
            uses: Use::ExactlyOnce,
            max_answers: 16,
            correct_score: 1.0,
            format_score: 0.0,
        }
    }
}

/// The rule.
pub struct Countdown(Args);

impl Countdown {
    /// Checks `args`; the error names the argument.
    pub fn new(args: Args) -> Result<Self, String> {
        expect_finite(&[("correct_score", args.correct_score), ("format_score", args.format_score)])?;
        if let Some(tag) = &args.tag {
            expect_tag("tag", tag)?;
        }
        Ok(Self(args))
    }

    fn stated<'a>(&self, completion: &'a str) -> Result<&'a str, &'static str> {
        let Some(tag) = &self.0.tag else { return Ok(completion) };
        let found = extract::tagged(completion, tag);
        match found.answer {
            _ if found.nested => Err("nested_answer"),
            _ if found.count > self.0.max_answers => Err("many_answers"),
            answer => answer.ok_or("no_answer"),
        }
    }

    /// The score of a completion for `numbers` and `target`, and a flag that says what is wrong with it.
    fn judge(&self, completion: &str, numbers: &[u64], target: i64) -> (f64, Option<&'static str>) {
        let stated = match self.stated(completion) {
            Ok(stated) => stated,
            Err(flag) => return (0.0, Some(flag)),
        };
        let Some((value, used)) = evaluate(stated) else { return (0.0, Some("unreadable_answer")) };
        if !uses_rightly(used, numbers, self.0.uses) {
            return (0.0, Some("wrong_numbers"));
        }
        let right = value.is_some_and(|v| v == BigRational::from_integer(target.into()));
        (if right { self.0.correct_score } else { self.0.format_score }, None)
    }
}

impl Rule for Countdown {
    fn name(&self) -> &str {
        "countdown"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        let numbers = columns::lookup(item, &self.0.numbers).and_then(Value::as_array);
        let numbers: Option<Vec<u64>> = numbers.and_then(|list| list.iter().map(Value::as_u64).collect());
        let Some(numbers) = numbers.filter(|n| !n.is_empty()) else {
            return Outcome::Unscorable {
                reason: format!("column {}: expected a list of whole numbers", self.0.numbers),
            };
        };
        let Some(target) = columns::lookup(item, &self.0.target).and_then(Value::as_i64) else {
            return Outcome::Unscorable { reason: format!("column {}: expected a whole number", self.0.target) };
        };
        match self.judge(&item.completion, &numbers, target) {
            (score, None) => Outcome::scored("countdown", score),
            (score, Some(flag)) => scored_with("countdown", score, &[(flag, 1.0)]),
        }
    }
}

fn uses_rightly(mut used: Vec<u64>, given: &[u64], uses: Use) -> bool {
    let mut left = given.to_vec();
    used.retain(|number| match left.iter().position(|g| g == number) {
        Some(place) => {
            left.swap_remove(place);
            false
        }
        None => true,
    });
    used.is_empty() && (uses == Use::AtMostOnce || left.is_empty())
}

/// The value of the expression (none where it divides by zero, or states a false result) and the numbers in it; none if it
/// is not an expression.
fn evaluate(stated: &str) -> Option<(Option<BigRational>, Vec<u64>)> {
    if stated.len() > MAX_EXPRESSION {
        return None;
    }
    let plain: String = text::fold(stated).chars().map(sign).collect();
    let (expression, claim) = match plain.split_once('=') {
        None => (plain.as_str(), None),
        Some((left, right)) => (left, Some(right.trim().parse::<BigInt>().ok()?)),
    };
    let mut parser = Parser { rest: expression, numbers: Vec::new(), depth: 0 };
    let value = parser.sum()?;
    parser.peek().is_none().then_some(())?;
    let value = value.filter(|v| claim.is_none_or(|claim| *v == BigRational::from_integer(claim)));
    Some((value, parser.numbers))
}

fn sign(c: char) -> char {
    match c {
        '×' | '·' | '⋅' | '∙' | '∗' => '*',
        '÷' | '∕' | '⁄' => '/',
        '−' | '–' => '-',
        c => c,
    }
}

/// Reads sums of products; the outer option is "is an expression", the inner one "has a value".
struct Parser<'a> {
    rest: &'a str,
    numbers: Vec<u64>,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn next_if(&mut self, wanted: &[char]) -> Option<char> {
        let c = self.peek().filter(|c| wanted.contains(c))?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn sum(&mut self) -> Option<Option<BigRational>> {
        let mut value = self.product()?;
        while let Some(op) = self.next_if(&['+', '-']) {
            let term = self.product()?;
            value = value.zip(term).map(|(a, b)| if op == '+' { a + b } else { a - b });
        }
        Some(value)
    }

    fn product(&mut self) -> Option<Option<BigRational>> {
        let mut value = self.operand()?;
        while let Some(op) = self.next_if(&['*', '/']) {
            let factor = self.operand()?;
            value = value.zip(factor).and_then(|(a, b)| match op {
                '*' => Some(a * b),
                _ => (!b.is_zero()).then(|| a / b),
            });
        }
        Some(value)
    }

    fn operand(&mut self) -> Option<Option<BigRational>> {
        if self.next_if(&['(']).is_some() {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return None;
            }
            let value = self.sum()?;
            self.next_if(&[')'])?;
            self.depth -= 1;
            return Some(value);
        }
        self.peek()?;
        let len = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        if len == 0 || len > MAX_DIGITS {
            return None;
        }
        let number: u64 = self.rest[..len].parse().ok()?;
        self.rest = &self.rest[len..];
        self.numbers.push(number);
        Some(Some(BigRational::from_integer(number.into())))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples::{item, total, unscorable};

    fn score(args: Args, expression: &str) -> f64 {
        let columns = [("numbers", json!([3, 3, 8, 8])), ("target", json!(24))];
        let text = format!("<answer>{expression}</answer>");
        total(&Countdown::new(args).unwrap().score(&item(&text, &columns)))
    }

    #[test]
    fn the_expression_is_computed_exactly_from_the_given_numbers() {
        let args = Args { format_score: 0.1, ..Args::default() };
        for (expression, want) in [
            ("8/(3-8/3)", 1.0),
            ("8 ÷ (3 − 8 ÷ 3) = 24", 1.0),
            ("(((8)))/(3-8/3)", 1.0),
            ("8/(3-8/3) = 25", 0.1),
            ("3+3+8+8", 0.1),
            ("8/(3-3)+8", 0.1),
            ("8*3", 0.0),
            ("8*3*3/3", 0.0),
            ("24", 0.0),
            ("3*8+(8-8)*3", 0.0),
            ("33-8-8", 0.0),
            ("-3+3+8+8", 0.0),
            ("8/(3-8/3", 0.0),
            ("8/(3-8/3))", 0.0),
            ("8/(3-8/3) 8", 0.0),
            ("8**3", 0.0),
            ("import os", 0.0),
            ("", 0.0),
        ] {
            assert_eq!(score(args.clone(), expression), want, "{expression}");
        }
        let once = Args { uses: Use::AtMostOnce, ..Args::default() };
        assert_eq!(score(once.clone(), "8*3"), 1.0);
        assert_eq!(score(once, "8*3*3/3"), 0.0, "three threes of two");
    }

    #[test]
    fn depth_and_length_are_bounded() {
        assert_eq!(score(Args::default(), &"(".repeat(500)), 0.0);
        assert_eq!(score(Args::default(), &"1+".repeat(5000)), 0.0);
        assert_eq!(score(Args::default(), &"9".repeat(19)), 0.0);
    }

    #[test]
    fn a_row_without_numbers_or_target_is_not_scored() {
        let rule = Countdown::new(Args::default()).unwrap();
        for columns in [
            vec![("target", json!(24))],
            vec![("numbers", json!([1, 2]))],
            vec![("numbers", json!([1, -2])), ("target", json!(1))],
            vec![("numbers", json!([])), ("target", json!(1))],
            vec![("numbers", json!([1])), ("target", json!("1"))],
        ] {
            unscorable(rule.score(&item("<answer>1</answer>", &columns)));
        }
    }
}
