//! Says which shape the rows of a file have, from the rows themselves, and why.

use std::{collections::BTreeMap, fmt};

use folgore_config::data::{DataFormat, DataSection};

use crate::{
    error::DatasetError,
    rows::{Container, RawRow},
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
        let container = match self.container {
            Container::Jsonl => "JSONL",
            Container::Json => "JSON",
        };
        let format = name(self.format);
        write!(f, "{}: {container}, format {format}: {} (fields: {})", self.path, self.reason, self.fields.join(", "))
    }
}

/// The name of a format as it is configured.
fn name(format: DataFormat) -> &'static str {
    match format {
        DataFormat::Auto => "auto",
        DataFormat::Prompt => "prompt",
        DataFormat::PromptCompletion => "prompt_completion",
        DataFormat::Messages => "messages",
        DataFormat::Verl => "verl",
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

fn by_fields(fields: &[String], sample: &[&RawRow]) -> Option<(DataFormat, String)> {
    let has = |name: &str| fields.iter().any(|field| field == name);
    let graded = ["reward_model", "reward_spec"].into_iter().find(|name| {
        has(name) && sample.iter().any(|row| row.fields.get(*name).is_some_and(|v| v.get("ground_truth").is_some()))
    });
    if let Some(name) = graded.filter(|_| has("prompt")) {
        return Some((DataFormat::Verl, format!("`prompt` with `{name}.ground_truth`, which becomes `answer`")));
    }
    if has("messages") {
        let over = if has("prompt") { "; it wins over `prompt`" } else { "" };
        return Some((
            DataFormat::Messages,
            format!("`messages`, whose last assistant turn becomes `completion`{over}"),
        ));
    }
    if has("prompt") && has("completion") {
        return Some((DataFormat::PromptCompletion, "`prompt` and `completion`".into()));
    }
    has("prompt").then(|| (DataFormat::Prompt, "`prompt`; every other field goes to the rewards".into()))
}

fn unknown(path: &str, fields: &[String]) -> DatasetError {
    let likely = LIKELY.into_iter().find(|name| fields.iter().any(|field| field == name));
    let hint =
        likely.map_or_else(String::new, |name| format!("; if `{name}` is the question, set data.prompt_column={name}"));
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
            "rows.jsonl: no known shape of row: expected `prompt` or `messages` among the fields, got question, answer; if \
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
