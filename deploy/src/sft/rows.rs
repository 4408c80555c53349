//! Rows to imitate: of files, or made by a rule whose answers are known.

use anyhow::{Context as _, Result};
use folgore_config::{DataSection, EvalSection};
use folgore_dataset::{Mixed, SourceRows, TraceMixture, arithmetic_traces};
use folgore_protocol::{Body, Digest, Example, Message, Prompt, Task, seed};

/// Rows that are made where `data.max_rows` says nothing.
const MADE: u64 = 2000;

/// Rows of both sides.
pub struct Rows {
    /// To learn.
    pub train: Mixed<Example>,
    /// To look at.
    pub eval: Vec<Example>,
    /// Names them and their order.
    pub digest: Digest,
    /// What was read, for people.
    pub report: String,
    /// What became of rows that were judged.
    pub judged: Option<String>,
}

/// The rows that `section` names, with as many held-out ones as `eval` takes.
pub fn rows(section: &DataSection, eval: &EvalSection, seed: u64) -> Result<Rows> {
    // sums of which every column carries have experts, right and wrong ones
    let has_experts = section.dataset == "arithmetic" && section.arithmetic.every_column_carries;
    let mut rows = if section.is_procedural() && !has_experts { made(section, seed)? } else { read(section)? };
    rows.eval = evenly(rows.eval, eval.eval_items as usize);
    Ok(rows)
}

/// At most `most` of `list`, evenly from its beginning to its end: sources may follow one another.
pub fn evenly<T>(list: Vec<T>, most: usize) -> Vec<T> {
    let n = list.len();
    if n <= most {
        return list;
    }
    let taken = |place: usize| place * most / n;
    list.into_iter().enumerate().filter(|(i, _)| taken(*i + 1) > taken(*i)).map(|(_, item)| item).collect()
}

/// Rows of files.
fn read(section: &DataSection) -> Result<Rows> {
    let folgore_dataset::Examples { train, eval, digest, report } = folgore_dataset::examples(section)?;
    let eval = eval.into_iter().map(of_its_source).collect();
    Ok(Rows { train: train.map(of_its_source), eval, digest, report: report.to_string(), judged: None })
}

/// A row that names its source itself, as verl's do, is told by that name.
fn of_its_source(mut example: Example) -> Example {
    if let Some(source) = example.columns.get("data_source").and_then(serde_json::Value::as_str) {
        source.clone_into(&mut example.source);
    }
    example
}

/// Questions of a rule with their answers; sums of plain prompts with careful work in columns, as the embedded policy writes it.
fn made(section: &DataSection, seed: u64) -> Result<Rows> {
    let folgore_dataset::Dataset { train, eval, digest, .. } = folgore_dataset::load(section)?;
    let count = section.max_rows.unwrap_or(MADE);
    let sums = &section.arithmetic;
    let works = section.dataset == "arithmetic"
        && !section.chat
        && sums.operations == "+"
        && sums.second_digits.is_none_or(|digits| digits == sums.digits);
    let example = |task: Task| -> Result<Example> {
        let answer =
            task.columns.get("answer").map(|answer| answer.as_str().map_or_else(|| answer.to_string(), str::to_owned));
        let answer = answer.with_context(|| {
            format!(
                "data.dataset {}: its rule makes questions without answers to imitate; name a file",
                section.dataset
            )
        })?;
        let body = match task.prompt {
            Prompt::Text(prompt) => Body::Completion { prompt, completion: format!("<answer>{answer}</answer>") },
            Prompt::Messages(mut messages) => {
                messages.push(Message::new("assistant", answer));
                Body::conversation(messages, Vec::new())
            }
        };
        Ok(Example { id: task.id, source: section.dataset.clone(), body, columns: task.columns })
    };
    let mixture = TraceMixture { digits: sums.digits, ..TraceMixture::clean() };
    let places = seed::mix(&[seed, 0x0073_6674]);
    let train = (0..count).map(|place| {
        if works {
            let (prompt, completion) = arithmetic_traces(places, place, &mixture);
            return Ok(sum(format!("made:{place}"), prompt, |_, _| completion));
        }
        example(train.task(seed::below(places, place, train.len())))
    });
    let train = train.collect::<Result<Vec<_>>>()?;
    let eval = match works {
        true => (0..eval.len()).map(|place| worked(&eval.task(place))).collect(),
        false => (0..eval.len()).map(|place| example(eval.task(place))).collect::<Result<Vec<_>>>()?,
    };
    let digest = Digest::of(format!("{} {count} {places}", digest.hex()).as_bytes());
    let report = format!("{}: {count} rows made by its rule, {} held out", section.dataset, eval.len());
    Ok(Rows { train: one_source(&section.dataset, train)?, eval, digest, report, judged: None })
}

/// `rows` as a mixture of one source.
pub fn one_source<T>(name: &str, rows: Vec<T>) -> Result<Mixed<T>> {
    Mixed::new(vec![SourceRows { name: name.to_owned(), rows }], None).map_err(anyhow::Error::msg)
}

/// A held-out sum with its work.
fn worked(task: &Task) -> Example {
    sum(task.id.clone(), task.prompt.last_text().to_owned(), folgore_dataset::careful_sum)
}

/// A sum with its work and its answer.
fn sum(id: String, prompt: String, work: impl FnOnce(i64, i64) -> String) -> Example {
    let (a, b) = prompt.trim_end_matches('=').split_once('+').unwrap_or_default();
    let (a, b): (i64, i64) = (a.parse().unwrap_or(0), b.parse().unwrap_or(0));
    let columns = serde_json::Map::from_iter([("answer".to_owned(), (a + b).to_string().into())]);
    let body = Body::Completion { prompt, completion: work(a, b) };
    Example { id, source: "arithmetic".into(), body, columns }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_of_many_are_taken_evenly() {
        assert_eq!(evenly((0..10).collect(), 3), [3, 6, 9]);
        assert_eq!(evenly((0..3).collect(), 9), [0, 1, 2]);
        assert!(evenly(vec![1], 0).is_empty());
    }

    #[test]
    fn rules_with_answers_make_rows() {
        let eval = EvalSection::default();
        let section = DataSection { max_rows: Some(5), ..DataSection::default() };
        let made = rows(&section, &eval, 1).unwrap();
        let Body::Completion { prompt, completion } = &made.train.get(0).body else {
            panic!("{:?}", made.train.get(0))
        };
        assert!(prompt.ends_with('=') && completion.starts_with("<think>") && made.eval.len() > 100);
        let held: Vec<&Body> = made.eval.iter().map(|e| &e.body).collect();
        assert!(made.train.rows().all(|e| !held.contains(&&e.body)));
        let chat = rows(&DataSection { chat: true, ..section.clone() }, &eval, 1).unwrap();
        let Body::Conversation { messages, learnt, .. } = &chat.train.get(0).body else {
            panic!("{:?}", chat.train.get(0))
        };
        assert_eq!((messages.len(), learnt.as_slice()), (2, [false, true].as_slice()));
        assert_ne!(rows(&section, &eval, 2).unwrap().train, made.train);
        assert_eq!(rows(&section, &eval, 1).unwrap().digest, made.digest);
        let unanswered = DataSection { dataset: "countdown".into(), ..section };
        assert!(rows(&unanswered, &eval, 1).err().is_some_and(|e| e.to_string().contains("without answers")));
    }
}
