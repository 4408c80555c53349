//! Says which shape the rows of a file have, from the rows themselves, and why.

use std::{collections::BTreeMap, fmt};

use folgore_config::data::{DataFormat, DataSection};
use serde_json::Value;

use crate::{
    error::DatasetError,
    rows::{Container, RawRow},
    shape::{
        fields::{self, parsed, truth},
        log,
        pairs::COMPLETION,
        trace::THOUGHT,
    },
};

/// Rows that the verdict is drawn from.
const LOOKED_AT: usize = 100;

/// Fields that often hold the question under another name.
const LIKELY: [&str; 6] = ["question", "problem", "instruction", "query", "input", "text"];

/// The verdict on a file, fit for printing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detection {
    /// The file.
    pub path: String,
    /// How rows are laid out.
    pub container: Container,
    /// Their shape.
    pub format: DataFormat,
    /// Fields that at least half of the first rows have, in order.
    pub fields: Vec<String>,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Detection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (container, format) = (self.container, self.format.name());
        write!(f, "{}: {container}, format {format}: {} (fields: {})", self.path, self.reason, self.fields.join(", "))
    }
}

/// Decides the format of `rows`, unless `section` names one.
pub(crate) fn detect<'a>(
    path: &str,
    container: Container,
    rows: impl Iterator<Item = &'a RawRow>,
    section: &DataSection,
) -> Result<Detection, DatasetError> {
    let sample: Vec<&RawRow> = rows.take(LOOKED_AT).collect();
    let fields = common_fields(&sample);
    let (format, reason) = if section.format != DataFormat::Auto {
        (section.format, "as data.format says".to_owned())
    } else if let Some(column) = &section.prompt_column {
        (DataFormat::Prompt, format!("data.prompt_column is `{column}`"))
    } else {
        by_fields(&fields, &sample).ok_or_else(|| unknown(path, &fields))?
    };
    Ok(Detection { path: path.to_owned(), container, format, fields, reason })
}

fn common_fields(sample: &[&RawRow]) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut order = Vec::new();
    for name in sample.iter().flat_map(|row| row.fields.keys()) {
        let count = counts.entry(name).or_insert(0);
        if *count == 0 {
            order.push(name.as_str());
        }
        *count += 1;
    }
    order.retain(|name| counts[name] * 2 >= sample.len());
    order.into_iter().map(str::to_owned).collect()
}

/// What the first rows show, beside the names of their fields.
struct Sample<'a> {
    fields: &'a [String],
    rows: &'a [&'a RawRow],
}

impl Sample<'_> {
    fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|field| field == name)
    }

    /// The first of `names` that rows have, in any case of letters.
    fn any(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().find(|name| self.fields.iter().any(|field| field.eq_ignore_ascii_case(name))).copied()
    }

    /// Whether a value of the field `name` is as `test` says, in some row.
    fn some(&self, name: &str, test: impl Fn(&Value) -> bool) -> bool {
        self.values(name).any(test)
    }

    /// The same in all rows that have a value there, of which there is one.
    fn all(&self, name: &str, test: impl Fn(&Value) -> bool) -> bool {
        let mut values = self.values(name).peekable();
        values.peek().is_some() && values.all(test)
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> + 'a {
        let value = move |row: &'a &RawRow| fields::first_named(&row.fields, name);
        self.rows.iter().filter_map(value).filter(|value| !value.is_null())
    }
}

fn by_fields(fields: &[String], sample: &[&RawRow]) -> Option<(DataFormat, String)> {
    let sample = Sample { fields, rows: sample };
    let rules = [by_grade, by_messages, by_pair, by_trace, by_prompt, by_benchmark];
    rules.iter().find_map(|rule| rule(&sample))
}

fn by_grade(s: &Sample) -> Option<(DataFormat, String)> {
    let holds = |value: &Value| parsed(value).get("ground_truth").is_some();
    let graded = ["reward_model", "reward_spec"].into_iter().find(|name| s.has(name) && s.some(name, holds))?;
    let target = s.any(&["target", "target_lst"]).map(|name| format!("; `{name}` is an expert's trace, LUFFY's"));
    let reason = format!("`prompt` with `{graded}.ground_truth`, which becomes `answer`{}", target.unwrap_or_default());
    s.has("prompt").then_some((DataFormat::Verl, reason))
}

fn by_messages(s: &Sample) -> Option<(DataFormat, String)> {
    if s.has("generations") && s.any(&["problem", "question"]).is_some() {
        return Some((
            DataFormat::Openr1,
            "`problem` and `generations`, of which the first that was found right becomes `completion`".into(),
        ));
    }
    let asks = |value: &Value| {
        let list = parsed(value);
        list.as_array()
            .and_then(|items| items.last()?.get("role")?.as_str().map(|role| role == "user"))
            .unwrap_or(false)
    };
    if let Some(thought) = s.any(&THOUGHT).filter(|_| s.has("messages") && s.all("messages", asks)) {
        return Some((DataFormat::Reasoning, format!("`messages` that end with a question, and `{thought}`")));
    }
    if s.has("messages") {
        let over = if s.has("prompt") { "; it wins over `prompt`" } else { "" };
        return Some((
            DataFormat::Messages,
            format!("`messages`, whose last assistant turn becomes `completion`{over}"),
        ));
    }
    let name = s.any(&["conversations", "conversation"])?;
    let turns = |value: &Value| parsed(value).as_array().is_some_and(|items| items.iter().all(Value::is_object));
    s.all(name, turns).then(|| (DataFormat::Sharegpt, format!("`{name}` of turns with from and value")))
}

fn by_pair(s: &Sample) -> Option<(DataFormat, String)> {
    if s.has("chosen") && s.has("rejected") && !s.has("instruction") {
        let prompt = if s.has("prompt") { "`prompt`, `chosen`" } else { "`chosen`, with the prompt in front of it," };
        return Some((
            DataFormat::Preference,
            format!("{prompt} and `rejected`; what was chosen becomes `completion`"),
        ));
    }
    let (asked, answered) = (s.any(&log::REQUEST), s.any(&log::RESPONSE));
    if let (Some(asked), Some(answered)) = (asked, answered)
        && s.all(asked, |value| parsed(value).is_object())
    {
        return Some((
            DataFormat::RequestLog,
            format!("`{asked}` and `{answered}`, as an interface was asked and answered"),
        ));
    }
    if s.has("test") && s.has("entry_point") && s.has("prompt") {
        return Some((
            DataFormat::Humaneval,
            "`prompt`, `test` and `entry_point`; the test with its call becomes `tests`".into(),
        ));
    }
    let lists = |name| s.has(name) && s.all(name, |value| parsed(value).is_array());
    if s.has("prompt") && lists("completions") && lists("labels") {
        let reason = "`prompt` with steps in `completions` and their `labels`; they count where all are true";
        return Some((DataFormat::Stepwise, reason.into()));
    }
    let labelled = s.has("label") && s.all("label", |value| truth(value).is_some());
    (labelled && s.has("prompt") && s.has("completion")).then(|| {
        (
            DataFormat::UnpairedPreference,
            "`prompt`, `completion` and a `label`; a completion counts where it is true".into(),
        )
    })
}

fn by_trace(s: &Sample) -> Option<(DataFormat, String)> {
    let thought = s.any(&THOUGHT)?;
    let said = s.any(&["content", "response", "output", "completion"]);
    // a prompt with an answer is a question for rewards, whatever was thought of it
    let question = s.any(&["question", "problem", "instruction", "query", "input"]);
    let (question, said) = match (question, said, s.has("prompt")) {
        (Some(question), Some(said), _) => (question, said),
        (Some(question), None, _) => (question, s.any(&["answer"])?),
        (None, Some(said), true) => ("prompt", said),
        _ => return None,
    };
    let text = s.all(thought, Value::is_string);
    text.then(|| (DataFormat::Reasoning, format!("`{question}` with `{thought}` and `{said}`, together `completion`")))
}

fn by_prompt(s: &Sample) -> Option<(DataFormat, String)> {
    if s.has("prompt") {
        let completed = COMPLETION.iter().find(|name| s.has(name));
        if let Some(name) = completed {
            let becomes = if *name == "completion" { "" } else { ", which becomes `completion`" };
            return Some((DataFormat::PromptCompletion, format!("`prompt` and `{name}`{becomes}")));
        }
        let label = s.has("label") && !s.has("answer") && s.some("label", |v| v.is_string() || v.is_number());
        let label = if label { "; `label` becomes `answer`" } else { "" };
        return Some((DataFormat::Prompt, format!("`prompt`; every other field goes to the rewards{label}")));
    }
    let output = s.any(&["output", "chosen", "response"])?;
    s.has("instruction")
        .then(|| (DataFormat::Alpaca, format!("`instruction` and `{output}`, which becomes `completion`")))
}

fn by_benchmark(s: &Sample) -> Option<(DataFormat, String)> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if s.has("question") && s.has("answer") && s.all("answer", |value| text(value).contains("####")) {
        return Some((DataFormat::Gsm8k, "`question` and an `answer` with #### in front of its number".into()));
    }
    if s.any(&["problem"]).is_some() && s.any(&["answer"]).is_some() {
        let whole = |value: &Value| text(value).trim().parse::<u32>().is_ok_and(|number| number < 1000);
        if s.all("answer", whole) && s.any(&["year", "url", "id"]).is_some() && s.any(&["subject", "level"]).is_none() {
            return Some((DataFormat::Aime, "`problem` and an `answer` from 0 to 999 in all rows".into()));
        }
        return Some((DataFormat::Math500, "`problem` and `answer`".into()));
    }
    let boxed = |value: &Value| text(value).contains("\\boxed");
    if s.any(&["problem"]).is_some() && s.any(&["solution"]).is_some() && s.all("solution", boxed) {
        return Some((DataFormat::Math500, "`problem` and a `solution` with a box, which becomes `answer`".into()));
    }
    let corpus = s.has("text") && s.all("text", Value::is_string);
    let likely = LIKELY.iter().any(|name| *name != "text" && s.has(name));
    (corpus && !likely).then(|| (DataFormat::Text, "`text`, all of it to learn".into()))
}

fn unknown(path: &str, fields: &[String]) -> DatasetError {
    let likely = LIKELY.into_iter().find(|name| fields.iter().any(|field| field == name));
    let corpus = fields.iter().any(|field| field == "contents");
    let hint = match likely {
        Some(name) => format!("; if `{name}` is the question, set data.prompt_column={name}"),
        None if corpus => "; `contents` are documents to search: `folgore index`, or data.rag_corpus".to_owned(),
        None => String::new(),
    };
    let fields = if fields.is_empty() { "none".to_owned() } else { fields.join(", ") };
    DatasetError::UnknownFormat { path: path.to_owned(), fields, hint }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn verdict(rows: serde_json::Value, section: &DataSection) -> Result<Detection, DatasetError> {
        let rows: Vec<RawRow> = rows
            .as_array()
            .unwrap()
            .iter()
            .map(|row| RawRow { number: 1, line: None, fields: row.as_object().unwrap().clone() })
            .collect();
        detect("rows.jsonl", Container::Jsonl, rows.iter(), section)
    }

    #[test]
    fn each_shape_is_told_from_the_others() {
        let auto = DataSection::default();
        for (rows, format) in [
            (json!([{"prompt": "a", "answer": 1}]), DataFormat::Prompt),
            (json!([{"prompt": "a", "completion": "b"}]), DataFormat::PromptCompletion),
            (json!([{"messages": [], "prompt": "a", "completion": "b"}]), DataFormat::Messages),
            (json!([{"prompt": [], "data_source": "x", "reward_model": {"ground_truth": "1"}}]), DataFormat::Verl),
            (json!([{"prompt": [], "reward_spec": {"ground_truth": "1"}}]), DataFormat::Verl),
            (
                json!([{"question": "a", "golden_answers": ["1"], "data_source": "nq", "prompt": [], "ability": "x",
                        "reward_model": {"style": "rule", "ground_truth": {"target": ["1"]}}, "extra_info": {}}]),
                DataFormat::Verl,
            ),
            (json!([{"prompt": "a", "reward_model": "best-rm-7b"}]), DataFormat::Prompt),
            (json!([{"prompt": "a", "label": "42", "metadata": {}}]), DataFormat::Prompt),
            (json!([{"prompt": "a", "answer": "4", "reasoning": "r"}]), DataFormat::Prompt),
            (json!([{"prompt": "a", "response": "b", "reward": 1.0}]), DataFormat::PromptCompletion),
            (json!([{"prompt": "a", "target": [{"role": "assistant", "content": "b"}]}]), DataFormat::PromptCompletion),
            (json!([{"prompt": "a", "completion": "b", "label": true}]), DataFormat::UnpairedPreference),
            (json!([{"prompt": "a", "completions": ["b", "c"], "labels": [true, false]}]), DataFormat::Stepwise),
            (json!([{"prompt": "a", "chosen": "b", "rejected": "c"}]), DataFormat::Preference),
            (json!([{"chosen": [], "rejected": []}]), DataFormat::Preference),
            (json!([{"instruction": "a", "input": "", "output": "b"}]), DataFormat::Alpaca),
            (json!([{"instruction": "a", "input": "", "chosen": "b", "rejected": "c"}]), DataFormat::Alpaca),
            (json!([{"conversations": [{"from": "human", "value": "a"}]}]), DataFormat::Sharegpt),
            (json!([{"text": "a"}]), DataFormat::Text),
            (json!([{"input": "a", "reasoning_content": "r", "content": "b"}]), DataFormat::Reasoning),
            (
                json!([{"messages": [{"role": "user", "content": "a"}], "reasoning": "r", "answer": "b"}]),
                DataFormat::Reasoning,
            ),
            (json!([{"problem": "a", "generations": ["b"], "messages": [], "answer": "1"}]), DataFormat::Openr1),
            (json!([{"question": "a", "answer": "b\n#### 1"}]), DataFormat::Gsm8k),
            (json!([{"problem": "a", "answer": "\\frac12", "level": 5, "unique_id": "x"}]), DataFormat::Math500),
            (json!([{"problem": "a", "answer": "7", "level": 5, "unique_id": "x"}]), DataFormat::Math500),
            (json!([{"ID": "2024-I-1", "Problem": "a", "Solution": "b", "Answer": 204}]), DataFormat::Aime),
            (
                json!([{"id": 60, "problem": "a", "solution": "b", "answer": "033", "url": "u", "year": "2024"}]),
                DataFormat::Aime,
            ),
            (
                json!([{"task_id": "HumanEval/0", "prompt": "def f():", "test": "t", "entry_point": "f", "canonical_solution": "c"}]),
                DataFormat::Humaneval,
            ),
            (json!([{"request": {"messages": []}, "response": {}}]), DataFormat::RequestLog),
            (json!([{"prompt": "a"}, {"prompt": "a"}, {"prompt": "a", "messages": []}]), DataFormat::Prompt),
        ] {
            assert_eq!(verdict(rows.clone(), &auto).unwrap().format, format, "{rows}");
        }
    }

    #[test]
    fn the_verdict_can_be_printed_and_overridden() {
        let rows = json!([{"question": "a", "answer": "b"}]);
        let error = verdict(rows.clone(), &DataSection::default()).unwrap_err().to_string();
        assert_eq!(
            error,
            "rows.jsonl: no known shape of row: expected `prompt` or `messages` among the fields (or those of another data.format), got question, answer; if \
             `question` is the question, set data.prompt_column=question"
        );
        let column = DataSection { prompt_column: Some("question".into()), ..DataSection::default() };
        assert_eq!(
            verdict(rows, &column).unwrap().to_string(),
            "rows.jsonl: JSONL, format prompt: data.prompt_column is `question` (fields: question, answer)"
        );
        let forced = DataSection { format: DataFormat::Prompt, ..DataSection::default() };
        assert_eq!(verdict(json!([{"prompt": "", "completion": ""}]), &forced).unwrap().format, DataFormat::Prompt);
    }
}
