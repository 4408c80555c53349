//! `folgore data` as its users have it: files of every shape and files that are none, told on standard output, with an exit code.

#[path = "../hub/tests/server/mod.rs"]
mod server;
mod support;

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use server::{Hub, Repo};
use support::{folder, folgore, metrics, refused, root, run};

fn fixture(name: &str) -> String {
    root().join("tests/parity/fixtures/formats").join(name).display().to_string()
}

/// `folgore data` in the folder `at`, whose user has no network.
fn data(at: &Path, args: &[&str]) -> Command {
    let mut command = folgore([&["data"], args].concat());
    command.current_dir(at).env("HF_HUB_OFFLINE", "1").env("HF_HOME", at.join("hf"));
    command
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn parsed(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_check_shows_shape_counts_and_what_is_learnt() {
    let at = folder();
    let model = root().join("tests/parity/fixtures/tiny-qwen3").display().to_string();
    let said = run(data(at.path(), &["check", &fixture("trl_prompt_completion_chat.parquet"), "--model", &model]))
        .well()
        .stdout;
    for part in
        ["Parquet, format prompt_completion: `prompt` and `completion`", "4 rows to learn from", "4 sequences, "]
    {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    // three rows as the model reads them, with what is learnt of each
    assert_eq!(said.matches("<|im_start|>assistant").count(), 3, "{said}");
    let learnt: Vec<&str> =
        said.lines().filter(|line| line.trim_start().starts_with("learnt") && line.contains(" t ")).collect();
    assert!(learnt.len() == 3 && learnt.iter().all(|line| line.ends_with("<|im_end|>\"")), "{learnt:?}");
    // the template is that of the run
    let other = ["check", &fixture("openai.jsonl"), "--model", "embedded"];
    refused(data(at.path(), &other), &["no usable row"]);
    assert!(run(data(at.path(), &other)).stdout.contains("2 rows cannot be rendered; the first: "));
    let all = parsed(
        &run(data(at.path(), &["check", "--json", &fixture("verl.parquet"), &fixture("trl_text.jsonl")])).well().stdout,
    );
    assert_eq!((&all[0]["questions"], &all[0]["examples"], &all[1]["examples"]), (&json!(3), &Value::Null, &json!(4)));
}

#[test]
fn hostile_rows_are_counted_by_row_and_field() {
    let at = folder();
    let mut body = b"\xef\xbb\xbf{\"prompt\": \"bom\", \"completion\": \"a\"}\r\n".to_vec();
    body.extend_from_slice(
        b"{\"prompt\": \"\xff\", \"completion\": \"a\"}\n{\"prompt\": null, \"completion\": \"a\"}\n",
    );
    body.extend_from_slice(b"{\"prompt\": \"\\ud800\", \"completion\": \"a\"}\n{\"completion\": \"a\"}\n");
    let marks = json!({"prompt": "a\u{0} <|im_end|> </information> <answer>x</answer>", "completion": "\u{1b}[31m \u{ff1c}answer\u{ff1e}"});
    body.extend_from_slice(format!("{marks}\n{{\"prompt\": \"{}\"}}\n", "x".repeat(3_000_000)).as_bytes());
    fs::write(at.path().join("rows.jsonl"), body).unwrap();
    let said = run(data(at.path(), &["check", "rows.jsonl", "data.max_line_bytes=1000000"])).well().stdout;
    for part in [
        "5 of 7 rows are bad and left out",
        "row 2 (line 2): expected UTF-8 text",
        "row 3 (line 3), field `prompt`: expected a text or a list of messages, got null",
        "row 4 (line 4): expected one JSON object",
        "row 5 (line 5), field `prompt`: expected a text or a list of messages, got no such field",
        "row 7 (line 7): expected a line of at most data.max_line_bytes = 1000000, got 30000",
        "2 rows to learn from",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!said.contains(['\u{1b}', '\u{0}']), "signs that a terminal acts on");
    // content holds no token of a turn
    let model = root().join("tests/parity/fixtures/tiny-qwen3").display().to_string();
    let shape = ["check", "--json", "rows.jsonl", "data.formatter=chat", "--model", &model];
    let tokens = |marked: &str| {
        fs::write(at.path().join("rows.jsonl"), lines(&[json!({"prompt": marked, "completion": "a"})])).unwrap();
        parsed(&run(data(at.path(), &shape)).well().stdout)[0]["tokens"].as_u64().unwrap()
    };
    assert!(tokens("<|im_end|>") > tokens("x") + 3, "as text it is many tokens");
    refused(
        data(at.path(), &["check", "rows.jsonl", "data.on_bad_row=stop", "--format", "verl"]),
        &["rows.jsonl", "no usable row"],
    );
    refused(data(at.path(), &["check", "owner/name"]), &["owner/name", "no usable row"]);
}

#[test]
fn what_is_converted_can_be_read_and_nothing_is_lost_in_silence() {
    let at = folder();
    for (name, to, count) in [
        ("sharegpt.json", "messages", 2),
        ("alpaca.csv", "prompt_completion", 4),
        ("luffy.parquet", "verl", 3),
        ("ollama_app.db", "sharegpt", 2),
    ] {
        run(data(at.path(), &["convert", &fixture(name), "out.jsonl", "--to", to])).well();
        let rows = fs::read_to_string(at.path().join("out.jsonl")).unwrap();
        assert_eq!(rows.lines().count(), count, "{name}");
        let again = run(data(at.path(), &["check", "out.jsonl", "--json"])).well().stdout;
        assert_eq!(parsed(&again)[0]["examples"], count, "{name}: {again}");
    }
    let said = run(data(at.path(), &["convert", &fixture("trl_unpaired.csv"), "-", "--to", "text"])).well();
    assert_eq!(parsed(&said.stdout).len(), 2);
    assert!(said.stderr.contains("2 rows left out: its label is false"), "{}", said.stderr);
    let nothing = run(data(at.path(), &["convert", &fixture("trl_text.jsonl"), "no.jsonl", "--to", "messages"]));
    assert!(nothing.stderr.contains("not written, 4 rows: plain text is no conversation"), "{}", nothing.stderr);
    assert!(!nothing.status.success() && !at.path().join("no.jsonl").exists());
    // what is read is not written over
    fs::write(at.path().join("in.jsonl"), lines(&[json!({"prompt": "a", "completion": "b"}), json!({"prompt": 1})]))
        .unwrap();
    refused(data(at.path(), &["convert", "in.jsonl", "in.jsonl", "--to", "text"]), &["in.jsonl", "another file"]);
    assert_eq!(fs::read_to_string(at.path().join("in.jsonl")).unwrap().lines().count(), 2);
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn a_name_on_the_hub_is_checked_converted_trained_on_and_pinned() {
    let at = folder();
    let sum = |i: u64, wrong: u64| json!({"prompt": format!("{}+{}=", 100 + i, 200 + i), "completion": format!("<answer>{}</answer>", 300 + 2 * i + wrong), "answer": (300 + 2 * i).to_string()});
    let rows = lines(&(0..40).map(|i| sum(i, u64::from(i % 4 == 3))).collect::<Vec<_>>());
    let files = [("data/train.jsonl".to_owned(), rows.into_bytes()), ("README.md".to_owned(), b"x".to_vec())];
    let repo = Repo { files: files.into(), revisions: vec!["main".into()], commit: COMMIT.into(), gate: None };
    let hub = Hub::with("datasets/owner/sums", repo);
    let user = |args: &[&str]| {
        let mut command = folgore(args);
        command.current_dir(at.path()).env("HF_HOME", at.path().join("hf")).env("HF_ENDPOINT", &hub.url);
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
            command.env_remove(name);
        }
        command
    };
    let said = run(user(&["data", "check", "owner/sums"])).well().stdout;
    assert!(said.contains("40 questions to train on") && said.contains("owner/sums"), "{said}");
    assert!(run(user(&["data", "check", "owner/nothing"])).stdout.contains("no such dataset"));
    run(user(&["data", "convert", "owner/sums", "out.jsonl", "--to", "messages"])).well();

    // rows whose answer is refused are not learnt
    let sft = [
        "sft",
        "model.model_name_or_path=embedded",
        "data.dataset=owner/sums",
        "optim.max_steps=2",
        "sft.batch_size=4",
    ];
    let judged = [
        &sft[..],
        &[
            "sft.min_reward=1",
            "reward=[{name: exact_match, args: {pattern: '<answer>(.+)</answer>'}}]",
            "--run-name",
            "kept",
        ],
    ]
    .concat();
    let said = run(user(&judged)).well().stdout;
    assert!(said.contains("; 10 left out: worth less than 1 by exact_match"), "{said}");
    let dir = at.path().join("runs/kept");
    let config = fs::read_to_string(dir.join("config.yaml")).unwrap();
    assert!(config.contains(&format!("dataset: owner/sums@{COMMIT}")), "{config}");
    let summary: Value = serde_json::from_slice(&fs::read(dir.join("summary.json")).unwrap()).unwrap();
    assert!(summary["judged"].as_str().unwrap().contains("rows to learn from are kept"), "{summary}");
    // a resume asks nobody
    hub.asked();
    run(user(&["sft", "--resume", "kept", "optim.max_steps=3"])).well();
    assert_eq!(hub.asked(), []);
    assert_eq!(metrics(&dir).last().unwrap()["step"], 3);
}

#[test]
fn what_agents_did_becomes_rows_that_are_learnt() {
    let at = folder();
    let span = |rollout: &str, n: u64, name: &str, attributes: Value| {
        json!({"rollout_id": rollout, "attempt_id": "a1", "span_id": format!("s{n}"), "sequence_id": n, "name": name,
            "start_time": n, "end_time": n, "attributes": attributes})
    };
    let call = |rollout: &str, n: u64, asked: &str, said: &str| {
        let attributes = json!({"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": asked,
            "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": said});
        span(rollout, n, "openai.chat.completion", attributes)
    };
    let reward = |rollout: &str, n: u64, value: f64| {
        let attributes = json!({"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value});
        span(rollout, n, "agentlightning.annotation", attributes)
    };
    let spans = [call("r1", 1, "2+3?", "6"), reward("r1", 2, 0.25), call("r2", 1, "2+4?", "6"), reward("r2", 2, 1.0)];
    fs::write(at.path().join("spans.jsonl"), lines(&spans)).unwrap();
    let told = run(data(at.path(), &["traces", "spans.jsonl", "-"])).well();
    let rewards: Vec<Value> = parsed(&told.stdout).iter().map(|row| row["reward"].clone()).collect();
    assert_eq!(rewards, [json!(1.0), json!(0.25)], "the best come first");
    assert!(told.stderr.contains("2 rollouts, 2 turns"), "{}", told.stderr);
    run(data(at.path(), &["traces", "spans.jsonl", "rows.jsonl", "--top", "0.5"])).well();
    let model = root().join("tests/parity/fixtures/tiny-qwen3").display().to_string();
    let shown = run(data(at.path(), &["check", "rows.jsonl", "--model", &model])).well().stdout;
    assert!(shown.contains("1 row to learn from") && shown.contains("\"6<|im_end|>\""), "{shown}");
    refused(data(at.path(), &["traces", "spans.jsonl", "-", "--min-reward", "2"]), &["spans.jsonl", "high enough"]);
    refused(data(at.path(), &["traces", "spans.jsonl", "-", "--top", "0"]), &["--top", "got 0"]);
}
