//! Reads what a rule needs from the columns of a task.

use folgore_protocol::ScoreItem;
use serde_json::Value;

/// Columns that hold the right answer when none is named: ours and TRL's, then verl's.
const GOLD_COLUMNS: [&str; 3] = ["answer", "ground_truth", "reward_model.ground_truth"];

/// The value at `path`: the name of a column, or names of nested keys with dots between.
pub(crate) fn lookup<'a>(item: &'a ScoreItem, path: &str) -> Option<&'a Value> {
    if let Some(value) = item.columns.get(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    rest.split('.').try_fold(item.columns.get(first)?, |value, key| value.get(key))
}

/// The right answers as text: one, or several where the column holds a list. Never empty; the error says what is missing.
pub(crate) fn gold_texts(item: &ScoreItem, column: Option<&str>) -> Result<Vec<String>, String> {
    let found = match column {
        Some(path) => lookup(item, path).map(|value| (path, value)),
        None => GOLD_COLUMNS.iter().find_map(|path| lookup(item, path).map(|value| (*path, value))),
    };
    let Some((path, value)) = found else {
        let wanted = column.map_or_else(|| GOLD_COLUMNS.join(", "), str::to_owned);
        return Err(format!("expected a column {wanted}, got none"));
    };
    let bad = || format!("column {path}: expected text, a number or a list of them, got {value}");
    let texts: Option<Vec<String>> = match value {
        Value::Array(values) => values.iter().map(scalar_text).collect(),
        value => scalar_text(value).map(|text| vec![text]),
    };
    texts.filter(|t| !t.is_empty()).ok_or_else(bad)
}

fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples::item;

    #[test]
    fn answers_are_found_where_datasets_keep_them() {
        for (columns, column, want) in [
            (vec![("answer", json!("7"))], None, Ok(vec!["7"])),
            (vec![("answer", json!(7))], None, Ok(vec!["7"])),
            (vec![("ground_truth", json!(["a", "b"]))], None, Ok(vec!["a", "b"])),
            (vec![("reward_model", json!({"ground_truth": "x"}))], None, Ok(vec!["x"])),
            (vec![("answer", json!("7")), ("final", json!("8"))], Some("final"), Ok(vec!["8"])),
            (vec![("answer", json!(null))], None, Err("got null")),
            (vec![("answer", json!([]))], None, Err("got []")),
            (vec![("other", json!(1))], None, Err("got none")),
        ] {
            match (gold_texts(&item("", &columns), column), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
                (got, want) => panic!("{columns:?}: expected {want:?}, got {got:?}"),
            }
        }
    }
}
