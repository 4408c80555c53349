//! Files made by each format's own libraries (`tests/parity/make_formats.py`), read as they are.

use std::{collections::BTreeMap, path::PathBuf};

use folgore_config::{
    DataSection, TracesSection,
    data::{ChatMemory, OnBadRow},
};
use folgore_dataset::{DatasetError, Traces, examples, load};
use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/fixtures/formats")
}

fn section(name: &str) -> DataSection {
    DataSection { dataset: folder().join(name).display().to_string(), eval_fraction: 0.0, ..DataSection::default() }
}

fn expected() -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(folder().join("expected.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(all["files"].clone()).unwrap()
}

/// Leaves out absent `tools`, which an example writes only where there are any.
fn body(example: &folgore_protocol::Example) -> Value {
    serde_json::to_value(&example.body).unwrap()
}

#[test]
fn every_file_says_what_its_writer_put_into_it() {
    let mut faults = Vec::new();
    let expected = expected();
    assert!(expected.len() >= 25);
    for (name, want) in &expected {
        let tasks = want["tasks"].as_array().unwrap();
        let bodies = want["examples"].as_array().unwrap();
        if !bodies.is_empty() {
            match examples(&section(name)) {
                Err(error) => faults.push(format!("{name}: examples: {error}")),
                Ok(read) => {
                    let report = read.report.to_string();
                    let form = format!(
                        "{}, format {}:",
                        want["container"].as_str().unwrap(),
                        want["format"].as_str().unwrap()
                    );
                    if !report.contains(&form) {
                        faults.push(format!("{name}: expected {form}, got {report}"));
                    }
                    let got: Vec<Value> = read.train.rows().map(body).collect();
                    if &got != bodies {
                        let (got, want) = (Value::from(got), &want["examples"]);
                        faults.push(format!("{name}: expected examples\n  {want}\ngot\n  {got}"));
                    }
                }
            }
        }
        if !tasks.is_empty() {
            match load(&section(name)) {
                Err(error) => faults.push(format!("{name}: tasks: {error}")),
                Ok(read) => {
                    if read.train.len() != tasks.len() as u64 {
                        faults.push(format!("{name}: expected {} tasks, got {}", tasks.len(), read.train.len()));
                        continue;
                    }
                    for (i, want) in tasks.iter().enumerate() {
                        let task = read.train.task(i as u64);
                        let prompt = serde_json::to_value(&task.prompt).unwrap();
                        if prompt != want["prompt"] {
                            faults.push(format!("{name}: expected prompt {}, got {prompt}", want["prompt"]));
                        }
                        for (column, value) in want["columns"].as_object().unwrap() {
                            if task.columns.get(column) != Some(value) {
                                let got = task.columns.get(column).cloned().unwrap_or_default();
                                faults.push(format!("{name}: row {i}: expected {column} = {value}, got {got}"));
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn rows_that_give_nothing_are_counted_with_their_reason() {
    for (name, reason) in [
        ("trl_unpaired.csv", "2 rows left out: its label is false"),
        ("openr1.parquet", "1 row left out: no generation was found right"),
        ("ollama_log.jsonl", "1 row left out: the response is an error"),
        ("ollama_app.db", "1 of 3 rows left out: fewer messages than data.memory.min_messages"),
    ] {
        let report = examples(&section(name)).unwrap().report.to_string();
        assert!(report.contains(reason), "{name}: {report}");
    }
    let error = load(&section("trl_text.jsonl")).unwrap_err().to_string();
    assert!(error.contains("4 rows left out: plain text asks nothing"), "{error}");
    let error = examples(&section("verl.parquet")).unwrap_err().to_string();
    assert!(error.contains("3 rows left out: nothing of it is learnt"), "{error}");
    assert!(matches!(examples(&DataSection::default()), Err(DatasetError::NothingToTrain { .. })));
}

#[test]
fn every_export_of_traces_gives_what_was_said_to_its_questions() {
    let said = |name: &str| {
        let tasks = load(&section(name)).unwrap().train;
        let path = Some(section(name).dataset);
        let on = TracesSection { per_group: 1, path, ..TracesSection::default() };
        let traces = Traces::load(&on, &section(name), &tasks).unwrap();
        (0..tasks.len()).map(|i| traces.of(i, &tasks.task(i)).concat()).collect::<Vec<Vec<String>>>()
    };
    assert_eq!(said("openr1.parquet"), [vec!["right 0"], vec!["right 1"], vec![]], "what was found wrong is nobody's");
    assert_eq!(said("luffy.parquet")[1], ["<think>\ndouble 1\n</think>\n\\boxed{2}"]);
    assert_eq!(said("rollouts.jsonl.zst"), [["= 0"], ["= 1"], ["= 2"]]);
    assert!(
        said("deepseek.jsonl.gz")
            .iter()
            .all(|trace| trace[0].starts_with("<think>\nabout ") && trace[0].ends_with("so"))
    );
    assert_eq!(said("dolphin_r1.jsonl")[0], ["<think>\nr\n</think>\n\na"]);
}

#[test]
fn sessions_are_chosen_by_name_model_time_and_length() {
    let sessions = |memory: ChatMemory| {
        let section = DataSection { memory, ..section("ollama_app.db") };
        match examples(&section) {
            Ok(read) => read.train.rows().map(|row| row.columns["session_id"].as_str().unwrap().to_owned()).collect(),
            Err(error) => vec![error.to_string()],
        }
    };
    let all = ChatMemory::default;
    assert_eq!(sessions(all()), ["c1", "c2"]);
    assert_eq!(sessions(ChatMemory { sessions: vec!["wea*".into()], ..all() }), ["c2"]);
    assert_eq!(sessions(ChatMemory { sessions: vec!["c1".into()], ..all() }), ["c1"]);
    assert_eq!(sessions(ChatMemory { models: vec!["*:4b".into()], ..all() }), ["c1"]);
    assert_eq!(sessions(ChatMemory { since: Some("2026-02-01".into()), ..all() }), ["c2"]);
    assert_eq!(sessions(ChatMemory { until: Some("2026-02-01T00:00:00Z".into()), ..all() }), ["c1"]);
    assert_eq!(sessions(ChatMemory { min_messages: 3, ..all() }), ["c2"]);
    assert_eq!(sessions(ChatMemory { min_chars: 20, min_messages: 4, ..all() }), ["c2"]);
    let none = sessions(ChatMemory { sessions: vec!["other".into()], ..all() });
    assert!(none[0].contains("another session than data.memory.sessions"), "{none:?}");
    let open = DataSection { memory: ChatMemory { redact: Vec::new(), ..all() }, ..section("ollama_app.db") };
    let said = serde_json::to_string(&examples(&open).unwrap().train.rows().collect::<Vec<_>>()).unwrap();
    assert!(said.contains("+49 30 1234567"));
}

#[test]
fn damaged_files_are_refused_with_a_reason() {
    let place = tempfile::tempdir().unwrap();
    for name in
        ["verl.parquet", "luffy.parquet", "gsm8k.parquet", "ollama_app.db", "deepseek.jsonl.gz", "rollouts.jsonl.zst"]
    {
        let whole = std::fs::read(folder().join(name)).unwrap();
        for step in 0..60 {
            let mut bytes = whole.clone();
            let at = step * whole.len() / 60;
            match step % 3 {
                0 => bytes.truncate(at.max(20)),
                1 => bytes[at] ^= 1 << (step % 8),
                _ => bytes[at..].iter_mut().take(16).for_each(|byte| *byte = 0xff),
            }
            let path = place.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let section = DataSection {
                dataset: path.display().to_string(),
                on_bad_row: OnBadRow::Skip,
                eval_fraction: 0.0,
                ..DataSection::default()
            };
            // what is read in spite of it is read; nothing may fall over
            if let Err(error) = examples(&section) {
                assert!(error.to_string().contains(name), "{name}: {error}");
            }
        }
    }
}
