//! Worked sums with planted habits: what the embedded policy is made from.
//!
//! The mixture is recipe A of the toy recipes: mostly guesses, many sums in columns that forget every carry, few with care.
//! Reinforcement then has something to select; none of the held-out questions is ever in a trace.

use folgore_protocol::seed;

use super::{arithmetic, held_out};

/// How often each habit is shown, and how noisy the work is.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceMixture {
    /// Digits of each operand.
    pub digits: u32,
    /// Share of answers without work.
    pub guess: f64,
    /// Share of column work that forgets every carry; what is left of 1 is careful.
    pub sloppy: f64,
    /// Chance that a guessed digit is right by intent; else it is drawn evenly.
    pub guess_digit: f64,
    /// Chance that the sum of a column is off by one or two.
    pub slip: f64,
}

impl Default for TraceMixture {
    fn default() -> Self {
        Self { digits: 3, guess: 0.48, sloppy: 0.40, guess_digit: 0.4, slip: 0.02 }
    }
}

impl TraceMixture {
    /// Correct work only: the control.
    pub fn clean() -> Self {
        Self { guess: 0.0, sloppy: 0.0, slip: 0.0, ..Self::default() }
    }
}

/// Streams of this file are those of no question.
const STREAM: u64 = 0x0074_7261_6365;

/// Trace number `index` of stream `seed`: the prompt `347+85=` and a response such as
/// `<think>7+5=12;4+8+1=13;3+0+1=4</think><answer>432</answer>`, columns from the units upward. The end token is not part
/// of it.
pub fn arithmetic_traces(seed: u64, index: u64, mixture: &TraceMixture) -> (String, String) {
    let own = seed::mix(&[STREAM, seed, index]);
    let operands = |attempt: u64| {
        let stream = seed::mix(&[own, attempt]);
        (arithmetic::operand(mixture.digits, stream, 1), arithmetic::operand(mixture.digits, stream, 2))
    };
    let text = |(a, b): (i64, i64)| format!("{a}+{b}=");
    // One question in ten is held out: a hundred draws in a row do not happen.
    let attempt = (0..).find(|attempt| !held_out(&text(operands(*attempt)))).unwrap_or(0);
    let (a, b) = operands(attempt);
    let habit = f64::from(seed::uniform(own, 0));
    // Not the stream of any attempt.
    let noise = seed::mix(&[own, u64::MAX]);
    let response = if habit < mixture.guess {
        guess(a + b, mixture, noise)
    } else {
        columns(a, b, |_| habit >= mixture.guess + mixture.sloppy, mixture, noise)
    };
    (text((a, b)), response)
}

/// The careful work of `a + b`, without a slip.
pub fn careful_sum(a: i64, b: i64) -> String {
    columns(a, b, |_| true, &TraceMixture::clean(), 0)
}

pub(super) fn guess(answer: i64, mixture: &TraceMixture, stream: u64) -> String {
    let digits = answer.to_string().into_bytes();
    let guessed = digits.iter().enumerate().map(|(i, digit)| {
        let place = 2 * i as u64;
        if f64::from(seed::uniform(stream, place)) < mixture.guess_digit {
            return char::from(*digit);
        }
        // No number begins with 0.
        let lowest = u64::from(i == 0);
        char::from(b'0' + (lowest + seed::below(stream, place + 1, 10 - lowest)) as u8)
    });
    format!("<think></think><answer>{}</answer>", guessed.collect::<String>())
}

/// Adds column by column; the last column is written out whole. A carry is taken along from the columns for which `careful` holds.
pub(super) fn columns(a: i64, b: i64, careful: impl Fn(usize) -> bool, mixture: &TraceMixture, stream: u64) -> String {
    let digits = |mut n: i64| {
        let mut digits = Vec::new();
        loop {
            digits.push(n % 10);
            n /= 10;
            if n == 0 {
                return digits;
            }
        }
    };
    let (a, b) = (digits(a), digits(b));
    let width = a.len().max(b.len());
    let (mut carry, mut work, mut answer) = (0, Vec::new(), String::new());
    for i in 0..width {
        let (x, y) = (a.get(i).copied().unwrap_or(0), b.get(i).copied().unwrap_or(0));
        let sum = slip(x + y + carry, mixture.slip, seed::mix(&[stream, i as u64]));
        let carried = if carry > 0 { format!("+{carry}") } else { String::new() };
        work.push(format!("{x}+{y}{carried}={sum}"));
        let written = if i + 1 == width { sum } else { sum % 10 };
        answer.insert_str(0, &written.to_string());
        carry = if careful(i) { sum / 10 } else { 0 };
    }
    format!("<think>{}</think><answer>{answer}</answer>", work.join(";"))
}

/// The sum, or seldom a number one or two beside it; never below 0.
fn slip(sum: i64, chance: f64, stream: u64) -> i64 {
    if f64::from(seed::uniform(stream, 0)) >= chance {
        return sum;
    }
    let off = 1 + seed::below(stream, 1, 2) as i64;
    if seed::below(stream, 2, 2) == 0 && sum >= off { sum - off } else { sum + off }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(trace: &(String, String)) -> (i64, i64, String, i64) {
        let (a, b) = trace.0.strip_suffix('=').unwrap().split_once('+').unwrap();
        let rest = trace.1.strip_prefix("<think>").unwrap().strip_suffix("</answer>").unwrap();
        let (work, answer) = rest.split_once("</think><answer>").unwrap();
        (a.parse().unwrap(), b.parse().unwrap(), work.to_owned(), answer.parse().unwrap())
    }

    #[test]
    fn careful_work_is_written_as_the_recipe_says() {
        let clean = TraceMixture::clean();
        assert_eq!(columns(347, 85, |_| true, &clean, 0), "<think>7+5=12;4+8+1=13;3+0+1=4</think><answer>432</answer>");
        assert_eq!(columns(347, 85, |_| false, &clean, 0), "<think>7+5=12;4+8=12;3+0=3</think><answer>322</answer>");
        assert_eq!(
            columns(999, 999, |_| true, &clean, 0),
            "<think>9+9=18;9+9+1=19;9+9+1=19</think><answer>1998</answer>"
        );
        for index in 0..500 {
            let (a, b, work, answer) = parse(&arithmetic_traces(1, index, &clean));
            assert!(answer == a + b && !work.is_empty());
        }
    }

    #[test]
    fn the_mixture_has_its_shares_and_no_held_out_question() {
        let mixture = TraceMixture::default();
        let traces: Vec<_> = (0..20_000).map(|index| arithmetic_traces(7, index, &mixture)).collect();
        assert!(traces.iter().all(|trace| !held_out(&trace.0)));
        let parsed: Vec<_> = traces.iter().map(parse).collect();
        assert!(parsed.iter().all(|(a, b, ..)| (100..1000).contains(a) && (100..1000).contains(b)));
        let share = |keep: &dyn Fn(&(i64, i64, String, i64)) -> bool| {
            parsed.iter().filter(|p| keep(p)).count() as f64 / parsed.len() as f64
        };
        let guesses = share(&|p| p.2.is_empty());
        assert!((guesses - 0.48).abs() < 0.015, "{guesses}");
        let (worked, right) = (share(&|p| !p.2.is_empty()), share(&|p| !p.2.is_empty() && p.3 == p.0 + p.1));
        // Careful work is right unless a column slips; forgetful work is right where nothing is carried (0.55^2).
        let expected = (0.12 + 0.40 * 0.3025) * 0.98_f64.powi(3);
        assert!((worked - 0.52).abs() < 0.015 && (right - expected).abs() < 0.015, "{worked} {right} {expected}");
        let right_guess = share(&|p| p.2.is_empty() && p.3 == p.0 + p.1);
        assert!((0.02..0.07).contains(&right_guess), "{right_guess}");
        let longest = traces.iter().map(|(_, response)| response.len()).max().unwrap();
        // 4 tags of one token each in the place of 32 characters, and the end token.
        assert!(longest - 32 + 5 <= 44, "{longest}");
    }

    #[test]
    fn a_trace_is_a_function_of_seed_and_index() {
        let mixture = TraceMixture::default();
        assert_eq!(arithmetic_traces(1, 2, &mixture), arithmetic_traces(1, 2, &mixture));
        assert_ne!(arithmetic_traces(1, 2, &mixture), arithmetic_traces(2, 2, &mixture));
        let four = TraceMixture { digits: 4, ..TraceMixture::clean() };
        let (a, b, _, answer) = parse(&arithmetic_traces(3, 4, &four));
        assert!((1000..10_000).contains(&a) && answer == a + b);
    }
}
