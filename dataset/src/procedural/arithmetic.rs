//! `arithmetic`: `347+852=`, with as many digits as asked for.

use folgore_config::data::Arithmetic;
use folgore_protocol::seed;
use serde_json::json;

use super::{Question, carries};

/// Operands have exactly `digits` and `second_digits` digits; one digit means 0 to 9. A difference may be negative.
pub(crate) fn question(difficulty: &Arithmetic, stream: u64) -> Question {
    let operations: Vec<char> = difficulty.operations.chars().collect();
    let place = seed::below(stream, 0, operations.len().max(1) as u64) as usize;
    let operation = operations.get(place).copied().unwrap_or('+');
    let (a, b) = match difficulty.every_column_carries {
        true => carries::operands(difficulty.digits, stream),
        false => (
            operand(difficulty.digits, stream, 1),
            operand(difficulty.second_digits.unwrap_or(difficulty.digits), stream, 2),
        ),
    };
    let answer = match operation {
        '-' => a - b,
        '*' => a * b,
        _ => a + b,
    };
    let plain = format!("{a}{operation}{b}=");
    let sign = if operation == '*' { "×" } else { &operation.to_string() };
    let words = format!("What is {a} {sign} {b}? Reply with the number only.");
    let columns = json!({"answer": answer.to_string(), "question": plain});
    Question {
        key: plain.clone(),
        plain,
        words,
        columns: columns.as_object().cloned().unwrap_or_default(),
        worked: None,
    }
}

/// Draws number `draw` of the stream, with exactly `digits` digits (at most 9: products fit in 64 bits).
pub(crate) fn operand(digits: u32, stream: u64, draw: u64) -> i64 {
    let top = 10_u64.pow(digits.clamp(1, 9));
    let bottom = if digits <= 1 { 0 } else { top / 10 };
    (bottom + seed::below(stream, draw, top - bottom)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_exact_and_operands_have_their_digits() {
        for digits in [1, 2, 3, 9] {
            let second = digits.min(2);
            let difficulty =
                Arithmetic { digits, second_digits: Some(second), operations: "+-*".into(), ..Arithmetic::default() };
            let mut signs = [0; 3];
            for stream in 0..600 {
                let question = question(&difficulty, stream);
                let text = question.plain.strip_suffix('=').unwrap();
                let at = text.find(['+', '-', '*']).unwrap();
                let (a, b) = (&text[..at], &text[at + 1..]);
                assert!(a.len() == digits as usize && b.len() == second as usize, "{text}");
                let (a, b): (i128, i128) = (a.parse().unwrap(), b.parse().unwrap());
                let sign = text.as_bytes()[at];
                let expected = [a + b, a - b, a * b];
                let which = b"+-*".iter().position(|s| *s == sign).unwrap();
                signs[which] += 1;
                assert_eq!(question.columns["answer"], expected[which].to_string());
            }
            assert!(signs.iter().all(|n| *n > 120), "{signs:?}");
        }
    }
}
