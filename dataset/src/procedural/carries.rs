//! Sums of which every column carries: what the policy `embedded:carries` knows the pieces of, and never puts together.
//!
//! It adds columns well that are given to it, with a carry where one is written down, but in whole sums it takes each carry along one
//! time in twenty-five only. So every step of careful work is rare and the whole of it does not happen. (Where columns were drilled
//! one by one, what was learnt of them did not help within a sum.)

use folgore_protocol::seed;

use super::{
    arithmetic::operand,
    held_out,
    trace::{TraceMixture, columns, guess},
};

/// Streams of this file are those of no question.
const STREAM: u64 = 0x6361_7272_6965;
/// Share of lessons that are columns to be added.
const DRILLS: f32 = 0.3;
/// Share of sums that are guessed.
const GUESSES: f32 = 0.2;
/// Share of sums of which every column carries.
const FULL: f32 = 0.3;
/// Chance that a carry is taken along.
const CARRY: f32 = 0.04;

/// Two numbers of `digits` digits of which every column carries.
pub(crate) fn operands(digits: u32, stream: u64) -> (i64, i64) {
    let column = |(a, b): (i64, i64), place: u32| {
        let own = seed::mix(&[stream, u64::from(place)]);
        // 1 to 9 and as much as makes at least ten of it
        let x = 1 + seed::below(own, 0, 9) as i64;
        let y = 10 - x + seed::below(own, 1, x as u64) as i64;
        (a * 10 + x, b * 10 + y)
    };
    (0..digits.clamp(1, 9)).fold((0, 0), column)
}

/// Lesson number `index` of stream `seed`: a prompt and its response, without the end token. No held-out question is in any.
pub fn carries_traces(seed: u64, index: u64) -> (String, String) {
    let own = seed::mix(&[STREAM, seed, index]);
    let noise = seed::mix(&[own, u64::MAX]);
    if seed::uniform(own, 0) < DRILLS {
        return drill(own);
    }
    let digits = [2, 3, 3, 4][seed::below(own, 4, 4) as usize];
    let full = seed::uniform(own, 5) < FULL;
    let pair = |attempt: u64| {
        let stream = seed::mix(&[own, attempt]);
        if full { operands(digits, stream) } else { (operand(digits, stream, 1), operand(digits, stream, 2)) }
    };
    let question = |attempt: u64| {
        let (a, b) = pair(attempt);
        format!("{a}+{b}=")
    };
    let attempt = (0..).find(|attempt| !held_out(&question(*attempt))).unwrap_or(0);
    let (a, b) = pair(attempt);
    let mixture = TraceMixture { digits, slip: 0.01, ..TraceMixture::default() };
    let response = if seed::uniform(own, 6) < GUESSES {
        guess(a + b, &mixture, noise)
    } else {
        columns(a, b, |column| seed::uniform(noise, 1000 + column as u64) < CARRY, &mixture, noise)
    };
    (question(attempt), response)
}

/// Columns to be added one after the other, with carries as they are written: they follow from nothing.
fn drill(stream: u64) -> (String, String) {
    let columns = 0..1 + seed::below(stream, 7, 4);
    let columns: Vec<(String, u64)> = columns
        .map(|place| {
            let own = seed::mix(&[stream, 8, place]);
            let (x, y, carry) = (seed::below(own, 0, 10), seed::below(own, 1, 10), seed::below(own, 2, 2));
            (format!("{x}+{y}{}", if carry == 1 { "+1" } else { "" }), x + y + carry)
        })
        .collect();
    let asked: Vec<&str> = columns.iter().map(|(column, _)| column.as_str()).collect();
    let work: Vec<String> = columns.iter().map(|(column, sum)| format!("{column}={sum}")).collect();
    // put together as that of a whole sum is
    let written = |(place, (_, sum)): (usize, &(String, u64))| if place + 1 == asked.len() { *sum } else { sum % 10 };
    let answer: Vec<String> = columns.iter().enumerate().map(written).map(|n| n.to_string()).rev().collect();
    (format!("{};=", asked.join(";")), format!("<think>{}</think><answer>{}</answer>", work.join(";"), answer.concat()))
}

/// What an expert says to `a+b=`: careful work, or, if he is `wrong`, work that forgets every carry.
pub(crate) fn worked(a: i64, b: i64, wrong: bool) -> String {
    columns(a, b, |_| !wrong, &TraceMixture::clean(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// True if every column of the sum of two numbers of as many digits carries, the first one without help.
    fn every_column_carries(mut a: i64, mut b: i64) -> bool {
        while a > 0 || b > 0 {
            if a % 10 + b % 10 < 10 {
                return false;
            }
            (a, b) = (a / 10, b / 10);
        }
        true
    }

    #[test]
    fn every_column_of_the_operands_carries() {
        for stream in 0..500 {
            let (a, b) = operands(4, stream);
            assert!(
                (1000..10_000).contains(&a) && (1000..10_000).contains(&b) && every_column_carries(a, b),
                "{a}+{b}"
            );
        }
        assert!(!every_column_carries(1999, 1111), "9+1 carries, 1+1 does not by itself");
    }

    #[test]
    fn lessons_know_the_pieces_and_hardly_ever_the_whole() {
        let lessons: Vec<_> = (0..20_000).map(|index| carries_traces(3, index)).collect();
        let is_drill = |prompt: &str| prompt.contains(';');
        let drills = lessons.iter().filter(|(prompt, _)| is_drill(prompt)).count();
        assert!((0.28..0.32).contains(&(drills as f64 / 20_000.0)), "{drills}");
        let sums: Vec<(i64, i64, &str)> = lessons
            .iter()
            .filter(|(prompt, response)| !is_drill(prompt) && response.contains('='))
            .map(|(prompt, response)| {
                let (a, b) = prompt.trim_end_matches('=').split_once('+').unwrap();
                (a.parse().unwrap(), b.parse().unwrap(), response.as_str())
            })
            .collect();
        let full: Vec<_> = sums.iter().filter(|(a, b, _)| *a >= 1000 && every_column_carries(*a, *b)).collect();
        assert!(full.len() > 500, "{}", full.len());
        let right = full.iter().filter(|(a, b, r)| r.ends_with(&format!("<answer>{}</answer>", a + b))).count();
        assert!(right <= 1, "three carries in a row, one time in 15,625: {right} of {}", full.len());
        assert!(lessons.iter().all(|(prompt, _)| is_drill(prompt) || !held_out(prompt)));
    }

    #[test]
    fn an_expert_is_right_or_forgets_every_carry() {
        assert_eq!(worked(99, 99, false), "<think>9+9=18;9+9+1=19</think><answer>198</answer>");
        assert_eq!(worked(99, 99, true), "<think>9+9=18;9+9=18</think><answer>188</answer>");
    }
}
