//! What experts said to questions, for groups that they are members of (the section `traces`).
//!
//! A trace is the turns of an assistant, as text. Questions find theirs by what was asked last: system prompts and worked
//! examples in front of a question may differ from those that its expert saw.

use std::collections::BTreeMap;

use folgore_config::{DataSection, TracesSection};
use folgore_protocol::{Digest, Task};
use serde_json::Value;

use crate::{DatasetError, Tasks};

/// Columns that hold what an expert said, the first one that is there counts.
const COLUMNS: [&str; 6] = ["target_lst", "target", "completion", "response", "generations", "output"];

/// Traces of the questions of a dataset.
#[derive(Clone, Debug)]
pub enum Traces {
    /// There are none.
    None,
    /// By question.
    Said(BTreeMap<String, Vec<Vec<String>>>),
    /// Worked by a rule, for the first so many questions.
    Worked {
        /// The rule.
        tasks: Box<Tasks>,
        /// Questions that have one.
        questions: u64,
    },
}

impl Traces {
    /// The traces that `section` asks for, of the training questions `tasks`, which `data` describes.
    ///
    /// # Errors
    /// If a file cannot be read, or no question has a trace.
    pub fn load(section: &TracesSection, data: &DataSection, tasks: &Tasks) -> Result<Self, DatasetError> {
        let most = section.max_questions.unwrap_or(u64::MAX);
        let traces = match (section.is_on(), &section.path, tasks) {
            (false, ..) => return Ok(Traces::None),
            (true, Some(path), _) => Self::said(&crate::load(&plain(path, data))?.train, most),
            (true, None, made @ (Tasks::Made(_) | Tasks::Changed(..))) => {
                Traces::Worked { tasks: Box::new(made.clone()), questions: made.len().min(most) }
            }
            (true, None, rows) => Self::said(rows, most),
        };
        let found = (0..tasks.len().min(LOOKED_AT)).any(|index| !traces.of(index, &tasks.task(index)).is_empty());
        if found {
            return Ok(traces);
        }
        let place = section.path.clone().unwrap_or_else(|| data.dataset.clone());
        let why = format!("none of the first {LOOKED_AT} questions has a trace in it: expected {}", COLUMNS.join(", "));
        Err(DatasetError::NothingToTrain { path: place, why })
    }

    fn said(rows: &Tasks, most: u64) -> Self {
        let mut said: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
        for row in (0..rows.len()).map(|index| rows.task(index)) {
            let traces = of_columns(&row);
            let full = said.len() as u64 >= most && !said.contains_key(key(&row));
            if !traces.is_empty() && !full {
                said.entry(key(&row).to_owned()).or_default().extend(traces);
            }
        }
        Traces::Said(said)
    }

    /// The traces of question number `index`.
    pub fn of(&self, index: u64, task: &Task) -> Vec<Vec<String>> {
        match self {
            Traces::None => Vec::new(),
            Traces::Said(said) => said.get(key(task)).cloned().unwrap_or_default(),
            Traces::Worked { tasks, questions } => {
                let (Tasks::Made(rule) | Tasks::Changed(rule, _)) = &**tasks else { return Vec::new() };
                let worked = rule.worked(index).filter(|_| index < *questions);
                worked.into_iter().map(|text| vec![text]).collect()
            }
        }
    }

    /// Names the traces.
    pub fn digest(&self) -> Digest {
        match self {
            Traces::None => Digest::of(b""),
            Traces::Said(said) => Digest::of(&serde_json::to_vec(said).unwrap_or_default()),
            // what they say is in the digest of the rule
            Traces::Worked { questions, .. } => Digest::of(format!("worked 1 {questions}").as_bytes()),
        }
    }

    /// One line for the user, of `questions` that there are.
    pub fn describe(&self, tasks: &Tasks) -> Option<String> {
        match self {
            Traces::None => None,
            Traces::Said(said) => {
                let looked = tasks.len().min(LOOKED_AT);
                let with = (0..looked).filter(|index| said.contains_key(key(&tasks.task(*index)))).count();
                Some(format!("traces of {} questions; {with} of the first {looked} to train on have one", said.len()))
            }
            Traces::Worked { questions, .. } => Some(format!("traces worked by the rule, for {questions} questions")),
        }
    }
}

/// Questions looked at for what is told of them.
const LOOKED_AT: u64 = 10_000;

/// How the rows of a file of traces are read: as those of the dataset, without what is put in front of questions.
fn plain(path: &str, data: &DataSection) -> DataSection {
    DataSection {
        dataset: path.to_owned(),
        sources: Vec::new(),
        eval_dataset: None,
        eval_fraction: 0.0,
        system_prompt: None,
        prompt_prefix: None,
        max_rows: None,
        rag_share: 0.0,
        ..data.clone()
    }
}

fn key(task: &Task) -> &str {
    let text = task.prompt.last_text().trim();
    // worked examples in front of a plain question end in a line of their own
    text.rsplit("\n\n").next().unwrap_or(text)
}

fn of_columns(task: &Task) -> Vec<Vec<String>> {
    let found = COLUMNS.iter().find_map(|name| Some((*name, task.columns.get(*name).filter(|v| !v.is_null())?)));
    match found {
        None => Vec::new(),
        // several experts
        Some(("target_lst" | "generations", Value::Array(several))) => several.iter().filter_map(turns).collect(),
        Some((_, value)) => turns(value).into_iter().collect(),
    }
}

/// The turns in a text, or in a list of messages: those of the assistant.
fn turns(value: &Value) -> Option<Vec<String>> {
    let turns: Vec<String> = match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(messages) => messages.iter().filter_map(turn).collect(),
        Value::Object(_) => turn(value).into_iter().collect(),
        _ => Vec::new(),
    };
    (turns.iter().any(|turn| !turn.trim().is_empty())).then_some(turns)
}

fn turn(message: &Value) -> Option<String> {
    let role = message.get("role").and_then(Value::as_str).unwrap_or("assistant");
    let content = message.get("content").and_then(Value::as_str).or(message.as_str())?;
    let thought = message.get("reasoning_content").and_then(Value::as_str);
    let said = match thought {
        Some(thought) if !content.contains("<think>") => format!("<think>\n{thought}\n</think>\n\n{content}"),
        _ => content.to_owned(),
    };
    (role == "assistant").then_some(said)
}

#[cfg(test)]
mod tests {
    use folgore_protocol::{Body, Prompt};
    use serde_json::json;

    use super::*;

    fn task(text: &str, columns: Value) -> Task {
        Task { id: text.into(), prompt: Prompt::Text(text.into()), columns: columns.as_object().unwrap().clone() }
    }

    #[test]
    fn traces_are_found_in_every_shape_by_the_question() {
        let rows = vec![
            task("a", json!({"target": [{"role": "assistant", "content": "A"}]})),
            task("b", json!({"completion": "B", "answer": 1})),
            task("c", json!({"target_lst": [[{"role": "assistant", "content": "C1"}], ["C2"]]})),
            task(
                "d",
                json!({"target": null, "response": [
                {"role": "assistant", "content": "D1"}, {"role": "tool", "content": "x"}, {"role": "assistant", "content": "D2"}]}),
            ),
            task("e", json!({"answer": 1})),
            task("f", json!({"response": {"role": "assistant", "content": "F", "reasoning_content": "hm"}})),
        ];
        let traces = Traces::said(&Tasks::Rows(rows.clone()), 100);
        let of = |text: &str| traces.of(0, &task(text, json!({})));
        assert_eq!((of("a"), of("b")), (vec![vec!["A".to_owned()]], vec![vec!["B".to_owned()]]));
        assert_eq!(of("c"), [["C1"], ["C2"]]);
        assert_eq!(of("d"), [["D1", "D2"]]);
        assert!(of("e").is_empty() && of("g").is_empty());
        assert_eq!(of("f"), [["<think>\nhm\n</think>\n\nF"]]);
        assert_eq!(of(" example: 1\n\na ").len(), 1, "what stands in front does not matter");
        let few = Traces::said(&Tasks::Rows(rows.clone()), 1);
        assert!(few.of(0, &rows[0]).len() == 1 && few.of(0, &rows[1]).is_empty());
    }

    #[test]
    fn a_rule_works_its_questions_and_as_many_wrongly_as_asked() {
        let mut data = DataSection { max_rows: Some(1000), ..DataSection::default() };
        data.arithmetic.digits = 4;
        data.arithmetic.every_column_carries = true;
        data.arithmetic.wrong = 0.7;
        let tasks = crate::load(&data).unwrap().train;
        assert_eq!(tasks.len(), 1000);
        let section = TracesSection { per_group: 1, max_questions: Some(500), ..TracesSection::default() };
        let traces = Traces::load(&section, &data, &tasks).unwrap();
        let right = |index: u64| {
            let task = tasks.task(index);
            let answer = format!("<answer>{}</answer>", task.columns["answer"].as_str().unwrap());
            traces.of(index, &task)[0][0].ends_with(&answer)
        };
        let share = (0..500).filter(|index| right(*index)).count() as f64 / 500.0;
        assert!((0.23..0.37).contains(&share), "{share}");
        assert!(traces.of(500, &tasks.task(500)).is_empty());
        let examples = crate::examples(&data).unwrap();
        assert_eq!((examples.train.len(), examples.eval.is_empty()), (1000, false), "the same, to be imitated");
        let Body::Completion { completion, .. } = &examples.train.get(3).body else { panic!() };
        assert_eq!(*completion, traces.of(3, &tasks.task(3))[0][0]);
        let off = TracesSection::default();
        assert!(matches!(Traces::load(&off, &data, &tasks), Ok(Traces::None)));
    }
}
