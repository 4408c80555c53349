//! Rows that are written in another shape and read again say the same.

use std::path::Path;

use folgore_config::DataSection;
use folgore_dataset::{
    Examples,
    convert::{self, Target},
    examples, load,
};
use folgore_protocol::{Body, Example};
use serde_json::Value;

fn read(path: &Path) -> Examples {
    let section = DataSection { dataset: path.display().to_string(), eval_fraction: 0.0, ..DataSection::default() };
    examples(&section).unwrap_or_else(|error| panic!("{error}"))
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/fixtures/formats").join(name)
}

fn again(name: &str, target: Target) -> Vec<(Body, Result<Body, String>)> {
    let rows: Vec<Example> = read(&fixture(name)).train.into_rows();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("rows.jsonl");
    rows.iter()
        .map(|row| {
            let written = convert::example(row, target).map_err(str::to_owned);
            let back = written.map(|value| {
                std::fs::write(&path, format!("{value}\n")).unwrap();
                read(&path).train.into_rows().remove(0).body
            });
            (row.body.clone(), back)
        })
        .collect()
}

#[test]
fn what_a_shape_can_say_comes_back() {
    let chats = ["sharegpt.json", "trl_messages_tools.parquet", "alpaca.json", "ollama_app.db", "deepseek.jsonl.gz"];
    for name in chats {
        for (body, back) in again(name, Target::Messages).into_iter().chain(again(name, Target::Sharegpt)) {
            // what a tool is called has no place in ShareGPT
            let (body, back) = (unnamed(body), unnamed(back.unwrap()));
            assert_eq!(serde_json::to_value(back).unwrap(), serde_json::to_value(body).unwrap(), "{name}");
        }
    }
    for (body, back) in again("openai.jsonl", Target::Messages) {
        assert_eq!(back.unwrap(), body, "weights");
    }
    for (body, back) in again("alpaca.json", Target::Alpaca) {
        assert_eq!(back.unwrap(), body);
    }
    for name in ["trl_prompt_completion.csv", "rollouts.jsonl.zst", "trl_prompt_completion_chat.parquet"] {
        for (body, back) in again(name, Target::PromptCompletion) {
            assert_eq!(back.unwrap(), body, "{name}");
        }
    }
    for (body, back) in again("trl_text.jsonl", Target::Text) {
        assert_eq!(back.unwrap(), body);
    }
}

fn unnamed(mut body: Body) -> Body {
    if let Body::Conversation { messages, .. } = &mut body {
        messages.iter_mut().filter(|m| m.role == "tool").for_each(|m| m.extra.clear());
        messages.iter_mut().for_each(|m| {
            if let Some(Value::Array(calls)) = m.extra.get_mut("tool_calls") {
                calls.iter_mut().for_each(|call| drop(call.as_object_mut().unwrap().remove("id")));
            }
        });
    }
    body
}

#[test]
fn what_a_shape_cannot_say_is_refused_with_its_reason() {
    let first = |name: &str, target| again(name, target).remove(0).1.unwrap_err();
    assert!(first("trl_messages_tools.parquet", Target::Alpaca).contains("tools"));
    assert!(first("openai.jsonl", Target::Sharegpt).contains("not learnt"));
    assert!(first("trl_text.jsonl", Target::Messages).contains("no conversation"));
    assert!(first("sharegpt.json", Target::Text).contains("calls"));
}

#[test]
fn questions_become_rows_of_verl() {
    for name in ["luffy.parquet", "gsm8k.parquet", "search_r1.parquet"] {
        let section =
            |path: &Path| DataSection { dataset: path.display().to_string(), eval_fraction: 0.0, ..Default::default() };
        let read = load(&section(&fixture(name))).unwrap();
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("rows.jsonl");
        let rows: Vec<String> = (0..read.train.len())
            .map(|i| convert::verl(&read.train.task(i), i, "rows").unwrap().to_string() + "\n")
            .collect();
        std::fs::write(&path, rows.concat()).unwrap();
        let back = load(&section(&path)).unwrap();
        for i in 0..read.train.len() {
            let (a, b) = (read.train.task(i), back.train.task(i));
            assert_eq!((&a.prompt, &a.columns["answer"]), (&b.prompt, &b.columns["answer"]), "{name}");
            assert_eq!(a.columns.get("completion"), b.columns.get("completion"), "{name}");
        }
    }
    let read =
        load(&DataSection { dataset: fixture("alpaca.json").display().to_string(), ..Default::default() }).unwrap();
    assert!(convert::verl(&read.train.task(0), 0, "rows").unwrap_err().contains("answer"));
}
