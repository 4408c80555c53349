//! `countdown`: reach a target from the given numbers with + - * /, each number used exactly once.

use folgore_config::data::Countdown;
use folgore_protocol::seed;
use serde_json::json;

use super::Question;

/// Joins the numbers at random into one value; the target is what came out, so that a solution exists. None if the draw
/// leaves the range.
pub(crate) fn question(difficulty: &Countdown, stream: u64) -> Option<Question> {
    let n = u64::from(difficulty.num_numbers);
    let top = u64::from(difficulty.max_number).max(1);
    let mut numbers: Vec<u64> = (0..n).map(|i| 1 + seed::below(stream, i, top)).collect();
    let target = join(numbers.clone(), stream, n)?;
    if target == 0 || target > u64::from(difficulty.max_target) || numbers.contains(&target) {
        return None;
    }
    // The order drawn is the order joined: it must not be readable off the question.
    seed::shuffle(seed::mix(&[stream, 1]), &mut numbers);
    let list = numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    let words = format!(
        "Reach {target} from the numbers {list}. Use every number exactly once, with + - * / and parentheses. Think briefly, \
         then give one expression inside <answer> and </answer>."
    );
    let columns = json!({"numbers": numbers, "target": target});
    Some(Question {
        // The same numbers in another order are the same question, and stay on one side.
        key: format!("{sorted:?} -> {target}"),
        plain: words.clone(),
        words,
        columns: columns.as_object().cloned().unwrap_or_default(),
        worked: None,
    })
}

/// Joins two values at a time until one is left; every value on the way is a whole number above 0.
fn join(mut values: Vec<u64>, stream: u64, mut draw: u64) -> Option<u64> {
    let mut next = |bound: u64| {
        draw += 1;
        seed::below(stream, draw, bound)
    };
    while values.len() > 1 {
        let a = values.swap_remove(next(values.len() as u64) as usize);
        let b = values.swap_remove(next(values.len() as u64) as usize);
        values.push(match next(4) {
            0 => a + b,
            1 => a.checked_sub(b).filter(|d| *d > 0)?,
            2 => a.checked_mul(b)?,
            _ => (b > 0 && a.is_multiple_of(b)).then(|| a / b)?,
        });
    }
    values.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every value that `values` can be joined to, in fractions.
    fn reachable(values: &[(i64, i64)], target: i64) -> bool {
        if let [(num, den)] = values {
            return *num == target * den;
        }
        (0..values.len()).any(|i| {
            (0..values.len()).filter(|j| *j != i).any(|j| {
                let ((an, ad), (bn, bd)) = (values[i], values[j]);
                let rest: Vec<_> = (0..values.len()).filter(|k| *k != i && *k != j).map(|k| values[k]).collect();
                let sums = [
                    (an * bd + bn * ad, ad * bd),
                    (an * bd - bn * ad, ad * bd),
                    (an * bn, ad * bd),
                    (an * bd, ad * bn),
                ];
                sums.into_iter().filter(|(_, den)| *den != 0).any(|joined| {
                    let mut next = rest.clone();
                    next.push(joined);
                    reachable(&next, target)
                })
            })
        })
    }

    #[test]
    fn every_question_can_be_solved() {
        for num_numbers in [2, 3, 4] {
            let difficulty = Countdown { num_numbers, ..Countdown::default() };
            let made: Vec<Question> = (0..4000).filter_map(|stream| question(&difficulty, stream)).take(100).collect();
            assert_eq!(made.len(), 100);
            for question in made {
                let numbers: Vec<(i64, i64)> =
                    question.columns["numbers"].as_array().unwrap().iter().map(|n| (n.as_i64().unwrap(), 1)).collect();
                assert_eq!(numbers.len(), num_numbers as usize);
                let target = question.columns["target"].as_i64().unwrap();
                assert!((1..=100).contains(&target) && reachable(&numbers, target), "{}", question.words);
            }
        }
    }
}
