//! Files of tests: GSM8K, MATH-500, AIME, and what is shaped like HumanEval. Each gives `answer` or tests as the rewards read them.

use folgore_config::data::DataSection;
use serde_json::Value;

use super::{
    Said,
    fields::{Fault, Fields, fault, first, needed, text},
};

/// `answer` is the number behind `####`, `solution` the whole of it.
pub(super) fn gsm8k(fields: &mut Fields, section: &DataSection) -> Result<Said, Fault> {
    let question = needed(fields, &["question"])?;
    let solution = needed(fields, &["answer"])?;
    let Some((_, last)) = solution.rsplit_once("####") else {
        return fault("answer", "a solution that ends with #### and a number", "none");
    };
    let number = last.trim().replace([',', '$'], "");
    if number.parse::<f64>().is_err() {
        return fault(
            "answer",
            "a number behind ####",
            format!("{:?}", last.trim().chars().take(40).collect::<String>()),
        );
    }
    fields.remove("question");
    fields.insert("answer".into(), number.into());
    fields.insert("completion".into(), solution.clone().into());
    super::beside(fields, "solution", solution.clone());
    Ok(Said::question(section, question, Some(solution)))
}

/// A problem with an answer in LaTeX, which may stand in the box of its solution only.
pub(super) fn math500(fields: &mut Fields, section: &DataSection) -> Result<Said, Fault> {
    let problem = needed(fields, &["problem", "question"])?;
    let solution = solution(fields)?;
    let answer = match first(fields, &["answer"]).map(|(name, _)| name.to_owned()) {
        Some(name) => text(fields, &name)?,
        None => solution.as_deref().and_then(boxed).map(str::to_owned),
    };
    let Some(answer) = answer else { return fault("answer", "an answer, or one in \\boxed{} in the solution", "none") };
    finish(fields, section, problem, solution, answer)
}

/// A problem whose answer is a whole number from 0 to 999.
pub(super) fn aime(fields: &mut Fields, section: &DataSection) -> Result<Said, Fault> {
    let problem = needed(fields, &["problem", "question"])?;
    let answer = needed(fields, &["answer"])?;
    let Ok(number) = answer.trim().parse::<u32>() else {
        return fault("answer", "a whole number from 0 to 999", answer);
    };
    if number > 999 {
        return fault("answer", "a whole number from 0 to 999", answer);
    }
    let solution = solution(fields)?;
    finish(fields, section, problem, solution, number.to_string())
}

fn solution(fields: &Fields) -> Result<Option<String>, Fault> {
    let name = first(fields, &["solution"]).map(|(name, _)| name.to_owned());
    Ok(name.map(|name| text(fields, &name)).transpose()?.flatten())
}

fn finish(
    fields: &mut Fields,
    section: &DataSection,
    problem: String,
    solution: Option<String>,
    answer: String,
) -> Result<Said, Fault> {
    for name in ["problem", "question"] {
        fields.retain(|key, _| !key.eq_ignore_ascii_case(name));
    }
    fields.retain(|key, _| !key.eq_ignore_ascii_case("answer"));
    fields.insert("answer".into(), answer.into());
    fields.extend(solution.clone().map(|text| ("completion".to_owned(), text.into())));
    Ok(Said::question(section, problem, solution))
}

/// What stands in the last `\boxed{}`.
fn boxed(text: &str) -> Option<&str> {
    let inside = &text[text.rfind("\\boxed{")? + "\\boxed{".len()..];
    let mut depth = 1;
    for (at, c) in inside.char_indices() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if depth == 0 {
            return Some(&inside[..at]);
        }
    }
    None
}

/// The beginning of a program, as plain text; `tests` is `test` with the call that runs it.
pub(super) fn humaneval(fields: &mut Fields, _: &DataSection) -> Result<Said, Fault> {
    let prompt = needed(fields, &["prompt"])?;
    let (test, entry) = (needed(fields, &["test"])?, needed(fields, &["entry_point"])?);
    let name = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    if !entry.chars().all(name) {
        return fault("entry_point", "the name of a function", format!("{entry:?}"));
    }
    let completion = text(fields, "canonical_solution")?;
    fields.remove("prompt");
    let call = format!("check({entry})");
    let tests = if test.contains(&call) { test } else { format!("{}\n\n{call}\n", test.trim_end()) };
    super::beside(fields, "tests", tests);
    fields.extend(completion.clone().map(|text| ("completion".to_owned(), Value::from(text))));
    Ok(Said::Plain { prompt, completion })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_nest() {
        assert_eq!(boxed(r"so \boxed{1} and \boxed{\frac{1}{2}}."), Some(r"\frac{1}{2}"));
        assert_eq!(boxed(r"\boxed{open"), None);
        assert_eq!(boxed("none"), None);
    }
}
