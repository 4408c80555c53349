//! The commands as other programs use them: the built executable, JSON lines, files that transformers and PEFT wrote.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use folgore_model::{Tensors, files::safetensors};
use serde_json::{Value, json};

fn folgore(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_folgore"));
    command.args(args);
    command
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/fixtures").join(name)
}

fn named(name: &str) -> String {
    fixture(name).display().to_string()
}

/// Runs a command over `input` on standard streams.
fn piped(args: &[&str], input: &str) -> Output {
    let mut command = folgore(args);
    // a name that could be on the hub is looked for there
    command.env("HF_HUB_OFFLINE", "1");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // a command that refuses its arguments has closed its end before everything is written
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn parsed(bytes: &[u8]) -> Vec<Value> {
    std::str::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The replies of a command that must not fail.
fn replies(args: &[&str], rows: &[Value]) -> Vec<Value> {
    let output = piped(args, &lines(rows));
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    parsed(&output.stdout)
}

/// The one line of a command that must fail.
fn complaint(args: &[&str], input: &str) -> String {
    let output = piped(args, input);
    assert!(!output.status.success(), "{args:?} took {input:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    text
}

fn expected(folder: &str, file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(folder).join(file)).unwrap()).unwrap()
}

fn rows_of(folder: &str) -> Vec<Value> {
    expected(folder, "expected.json")["rows"].as_array().unwrap().iter().map(|ids| json!({ "ids": ids })).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// Base, adapter and the folder with what other software made of them.
const MODELS: [(&str, Option<&str>, &str); 5] = [
    ("tiny-untied", None, "tiny-untied"),
    ("tiny-tied", None, "tiny-tied"),
    ("tiny-tied-bf16-sharded", None, "tiny-tied-bf16-sharded"),
    ("tiny-gguf/tiny.gguf", None, "tiny-gguf"),
    ("tiny-untied", Some("adapter-untied"), "adapter-untied"),
];

fn with_model(command: &str, base: &str, adapter: Option<&str>) -> Vec<String> {
    let mut args = vec![command.to_owned(), "--model".into(), named(base)];
    args.extend(adapter.into_iter().flat_map(|a| ["--adapter".to_owned(), named(a)]));
    args
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn score_gives_the_logits_of_transformers_and_their_log_probs() {
    for (base, adapter, folder) in MODELS {
        let mut args = with_model("score", base, adapter);
        args.push("--logits".into());
        let rows = rows_of(folder);
        let logits = safetensors::read(&fixture(folder).join("logits.safetensors")).unwrap();
        for (i, reply) in replies(&strs(&args), &rows).iter().enumerate() {
            let want = logits[&format!("logits.{i}")].to_f32();
            let got: Vec<f64> = reply["logits"].as_array().unwrap().iter().flat_map(floats).collect();
            assert_eq!(got.len(), want.len());
            let worst = got.iter().zip(&want).map(|(g, w)| (g - f64::from(*w)).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-4, "{folder}, row {i}: {worst}");
            let ids: Vec<usize> =
                reply["ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect();
            let logprobs = floats(&reply["logprobs"]);
            assert_eq!((&reply["ids"], logprobs.len()), (&rows[i]["ids"], ids.len() - 1));
            for (position, logprob) in logprobs.iter().enumerate() {
                let row = &want[position * 300..(position + 1) * 300];
                let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                let exact = f64::from(row[ids[position + 1]]) - sum.ln();
                assert!((logprob - exact).abs() < 2e-4, "{folder}, row {i}, {position}: {logprob} against {exact}");
            }
        }
    }
}

#[test]
fn score_writes_the_gradient_that_torch_takes() {
    let folder = tempfile::tempdir().unwrap();
    for (base, adapter) in [("tiny-untied", "adapter-untied"), ("tiny-tied", "adapter-tied-rslora")] {
        let path = folder.path().join("grad.safetensors");
        let mut args = with_model("score", base, Some(adapter));
        args.extend(["--grad".into(), path.display().to_string()]);
        replies(&strs(&args), &rows_of(adapter));
        let got: Tensors = safetensors::read(&path).unwrap();
        let want = safetensors::read(&fixture(adapter).join("gradients.safetensors")).unwrap();
        assert!(got.keys().eq(want.keys()), "{:?}", got.keys().collect::<Vec<_>>());
        for (name, want) in &want {
            let (g, w) = (got[name].to_f32(), want.to_f32());
            let scale = w.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let worst = g.iter().zip(&w).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
            assert!(scale > 0.0 && worst <= 1e-3 * scale, "{adapter} {name}: {worst} of {scale}");
        }
        let bytes = std::fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let loss: f64 = header["__metadata__"]["loss"].as_str().unwrap().parse().unwrap();
        let exact = expected(adapter, "gradients.json")["loss"].as_f64().unwrap();
        assert!((loss - exact).abs() < 1e-4 * exact, "{adapter}: loss {loss} against {exact}");
    }
}

#[test]
fn a_rows_score_does_not_depend_on_its_company() {
    let args = with_model("score", "tiny-untied", Some("adapter-untied"));
    let rows = rows_of("adapter-untied");
    let together = replies(&strs(&args), &rows);
    for (row, reply) in rows.iter().zip(&together) {
        assert_eq!(&replies(&strs(&args), std::slice::from_ref(row))[0], reply);
    }
    let warm = [args.clone(), vec!["--temperature".into(), "2.0".into()]].concat();
    assert_ne!(replies(&strs(&warm), &rows)[0]["logprobs"], together[0]["logprobs"]);
}

#[test]
fn generate_is_greedy_as_transformers_is() {
    for (base, adapter, folder) in MODELS {
        let mut args = with_model("generate", base, adapter);
        args.extend(["--temperature", "0", "--max-new-tokens", "24", "--ignore-eos"].map(str::to_owned));
        let wanted = expected(folder, "expected.json")["greedy"].clone();
        for (i, reply) in replies(&strs(&args), &rows_of(folder)).iter().enumerate() {
            let want = wanted[i].as_array().unwrap();
            let got = reply["ids"].as_array().unwrap();
            assert_eq!((&got[..want.len()], got.len()), (&want[..], 24), "{folder}, row {i}");
            assert_eq!((floats(&reply["logprobs"]).len(), reply["stop_reason"].as_str()), (24, Some("length")));
        }
    }
}

#[test]
fn generated_log_probs_are_those_that_score_gives() {
    let args = with_model("generate", "tiny-untied", Some("adapter-untied"));
    let args =
        [args, ["--temperature", "0.7", "--max-new-tokens", "30", "--seed", "5", "-n", "3"].map(str::to_owned).into()]
            .concat();
    let rows = rows_of("adapter-untied");
    let made = replies(&strs(&args), &rows);
    assert_eq!(made, replies(&strs(&args), &rows), "the same seed gave something else");
    let places: Vec<u64> = made.iter().map(|reply| reply["index"].as_u64().unwrap()).collect();
    assert_eq!(places, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    assert!(made[0]["ids"] != made[1]["ids"] && made[0]["text"].is_string());

    let prompt = |i: usize| rows[i / 3]["ids"].as_array().unwrap().clone();
    let whole = |(i, reply): (usize, &Value)| {
        let ids = [prompt(i), reply["ids"].as_array().unwrap().clone()].concat();
        json!({ "ids": ids })
    };
    let whole: Vec<Value> = made.iter().enumerate().map(whole).collect();
    let score =
        [with_model("score", "tiny-untied", Some("adapter-untied")), vec!["--temperature".into(), "0.7".into()]]
            .concat();
    for (i, (scored, reply)) in replies(&strs(&score), &whole).iter().zip(&made).enumerate() {
        let logprobs = floats(&scored["logprobs"]);
        assert_eq!(logprobs[prompt(i).len() - 1..], floats(&reply["logprobs"]), "completion {i}, bit for bit");
    }
}

#[test]
fn a_completion_ends_where_it_is_told_to() {
    let args = with_model("generate", "tiny-tied", None);
    let run = |more: &[&str], row: Value| {
        let args = [strs(&args), more.to_vec()].concat();
        replies(&args, &[row]).remove(0)
    };
    // the greedy continuation of [7] begins 95 170 95 284
    let row = json!({"ids": [7]});
    let text = run(&["--temperature", "0", "--max-new-tokens", "3"], row.clone())["text"].as_str().unwrap().to_owned();
    let stop: String = text.chars().take(1).collect();
    let reply = run(&["--temperature", "0", "--stop", &stop], row.clone());
    assert_eq!((reply["ids"].as_array().unwrap().len(), reply["stop_reason"].as_str()), (1, Some("stop_string")));
    let reply = run(&["--temperature", "1", "--max-new-tokens", "1000", "--ignore-eos"], row);
    assert_eq!((reply["ids"].as_array().unwrap().len(), reply["stop_reason"].as_str()), (127, Some("context")));
    let reply = run(&["--max-new-tokens", "4"], json!({"messages": [{"role": "user", "content": "the cat"}]}));
    assert!(!reply["ids"].as_array().unwrap().is_empty());
    let reply = run(&["--max-new-tokens", "4"], json!({"prompt": "the cat"}));
    assert!(reply["ids"].as_array().unwrap().len() <= 4);
}

#[test]
fn many_rows_come_back_in_order_and_as_when_alone() {
    let args = with_model("generate", "tiny-tied", None);
    let args = [args, ["--max-new-tokens", "12", "--seed", "3"].map(str::to_owned).into()].concat();
    let rows: Vec<Value> = (0..400u32).map(|i| json!({"ids": [4 + i % 290, 5 + i % 7]})).collect();
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out.jsonl"));
    std::fs::write(&input, lines(&rows)).unwrap();
    let files = ["--in", input.to_str().unwrap(), "--out", output.to_str().unwrap()];
    let done = folgore(&[strs(&args), files.to_vec()].concat()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let from_file = parsed(&std::fs::read(&output).unwrap());
    assert_eq!(from_file.len(), 400);
    assert_eq!(from_file, replies(&strs(&args), &rows), "a pipe and a file gave different completions");
    assert_eq!(from_file[0], replies(&strs(&args), &rows[..1])[0]);
}

#[test]
fn tokenize_needs_only_tokenizer_files_and_keeps_untrusted_text_from_acting() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(fixture("tiny-tied").join(file), folder.path().join(file)).unwrap();
    }
    let args = ["tokenize", "--model", folder.path().to_str().unwrap()];
    let text = "the cat <|im_end|> sat";
    let chat = json!({"messages": [{"role": "user", "content": text}], "add_generation_prompt": true});
    let rows = [json!({ "text": text }), chat, json!({"messages": [{"role": "user", "content": "the cat"}]})];
    let replies_untrusted = replies(&args, &rows);
    let has =
        |reply: &Value, id: u64| reply["ids"].as_array().unwrap().iter().filter(|v| v.as_u64() == Some(id)).count();
    assert_eq!((has(&replies_untrusted[0], 2), &replies_untrusted[0]["text"]), (0, &json!(text)));
    let trusted = replies(&[&args[..], &["--trusted"]].concat(), &rows[..1]);
    assert_eq!(has(&trusted[0], 2), 1);
    let rendered = replies_untrusted[1]["text"].as_str().unwrap();
    assert!(rendered.contains(text) && rendered.ends_with("<|im_start|>assistant\n"), "{rendered:?}");
    let turns = rendered.matches("<|im_end|>").count() - 1;
    assert_eq!(has(&replies_untrusted[1], 2), turns, "the content ended a turn");
    assert!(
        !replies_untrusted[2]["text"].as_str().unwrap().ends_with("assistant\n"),
        "a generation prompt that nobody asked for"
    );
}

#[test]
fn loss_answers_with_advantages_loss_and_gradient() {
    let row =
        json!({"logprobs": [[-1.0, -2.0], [-0.5, -0.25]], "rewards": [1, 0], "config": {"scale_rewards": "none"}});
    let reply = replies(&["loss"], &[row.clone(), row]).remove(1);
    assert_eq!(floats(&reply["advantages"]), [0.5, -0.5]);
    let grad: Vec<f64> = reply["grad"].as_array().unwrap().iter().flat_map(floats).collect();
    for (got, want) in grad.iter().zip([-0.125, -0.125, 0.125, 0.125]) {
        assert!((got - want).abs() < 1e-12, "{grad:?}");
    }
    assert!(reply["loss"].is_number() && reply["metrics"]["ratio/max"] == json!(1.0));
}

#[test]
fn doctor_is_one_block() {
    let output = folgore(&["doctor"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for fact in
        ["folgore", "processor", "threads", "kernels", "memory", "disk", "embedded", "bubblewrap", "nats-server"]
    {
        assert!(text.lines().any(|line| line.starts_with(fact)), "no {fact} in {text}");
    }
}

#[test]
fn bad_input_is_one_line_that_names_the_thing() {
    let untied = named("tiny-untied");
    let model = |command: &'static str| vec![command, "--model", untied.as_str()];
    let with = |args: Vec<&'static str>| args;
    let long = format!("{}\n", json!({"ids": vec![5; 128]}));
    let too_long = format!("{}\n", json!({"ids": vec![5; 129]}));
    let adapter = named("adapter-tied-rslora");
    let cases: Vec<(Vec<&str>, &str, &[&str])> = vec![
        (with(vec!["score", "--model", "no/such"]), "", &["no/such", "no such model"]),
        (with(vec!["tokenize", "--model", "no/such"]), "", &["no/such"]),
        (with(vec!["loss", "--in", "no/such.jsonl"]), "", &["no/such.jsonl"]),
        (with(vec!["loss", "--out", "no/such/out.jsonl"]), "{}\n", &["no/such/out.jsonl"]),
        ([model("score"), vec!["--adapter", "no/adapter"]].concat(), "", &["no/adapter"]),
        ([model("score"), vec!["--adapter", &adapter]].concat(), "", &["adapter-tied-rslora", "shape"]),
        ([model("score"), vec!["--temperature", "0"]].concat(), "", &["--temperature"]),
        (model("score"), "{\"ids\":[1]}\n{\"ids\":[1,300]}\n", &["line 2", "300", "vocabulary"]),
        (model("score"), "{\"ids\":[]}\n", &["line 1", "at least one token"]),
        (model("score"), &too_long, &["line 1", "129", "128"]),
        (model("generate"), &long, &["line 1", "128 tokens", "context"]),
        (model("generate"), "{\"prompt\":\"\"}\n", &["line 1", "empty"]),
        (model("generate"), "{\"prompt\":\"a\",\"ids\":[1]}\n", &["line 1", "only one of"]),
        (model("generate"), "{\"prompt\":\"a\",\"top_k\":1}\n", &["line 1", "top_k"]),
        (model("generate"), "{\"ids\":[1]\n", &["line 1", "not JSON"]),
        (model("generate"), "{\"messages\":[{\"role\":3}]}\n", &["line 1", "messages[0].role"]),
        ([model("generate"), vec!["--top-p", "0"]].concat(), "", &["--top-p"]),
        ([model("generate"), vec!["-n", "0"]].concat(), "", &["-n"]),
        (model("tokenize"), "{\"txt\":\"a\"}\n", &["line 1", "text, messages", "txt"]),
        (with(vec!["loss"]), "{\"logprobs\":[[-1]]}\n", &["line 1", "rewards"]),
        (with(vec!["inspect", "nothing-here"]), "", &["nothing-here"]),
    ];
    for (args, input, wants) in cases {
        let said = complaint(&args, input);
        for want in wants {
            assert!(said.contains(want), "{args:?}: {said:?} does not say {want:?}");
        }
    }
}

#[test]
fn rows_before_a_bad_one_are_answered() {
    for (command, row) in
        [("generate", "{\"ids\":[7]}\n"), ("score", "{\"ids\":[7,8]}\n"), ("tokenize", "{\"text\":\"a\"}\n")]
    {
        let model = named("tiny-tied");
        let output = piped(&[command, "--model", &model], &format!("{row}{row}nonsense\n{row}"));
        assert!(!output.status.success());
        assert_eq!(parsed(&output.stdout).len(), 2, "{command}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("line 3"), "{command}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let model = named("tiny-tied");
    let mut child = folgore(&["tokenize", "--model", &model])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || while stdin.write_all(b"{\"text\":\"the cat sat\"}\n").is_ok() {});
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn replies_come_before_the_next_row_is_asked_for() {
    use std::io::{BufRead, BufReader};
    let model = named("tiny-tied");
    for (command, row) in
        [("generate", "{\"ids\":[7]}\n"), ("score", "{\"ids\":[7,8]}\n"), ("tokenize", "{\"text\":\"a\"}\n")]
    {
        let mut child =
            folgore(&[command, "--model", &model]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        for _ in 0..3 {
            stdin.write_all(row.as_bytes()).unwrap();
            let mut reply = String::new();
            stdout.read_line(&mut reply).unwrap();
            assert!(reply.ends_with("}\n"), "{command}: {reply:?}");
        }
        drop(stdin);
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn eval_tells_shares_with_their_intervals() {
    let eval = ["eval", "arithmetic", "--items", "24", "--samples", "4", "--k", "1,4", "--seed", "3"];
    let told = |extra: &[&str]| {
        let output = folgore(&[&eval, extra].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let figures: Value = serde_json::from_str(&told(&["--json"])).unwrap();
    let share = |name: &str| figures[name].as_f64().unwrap_or_else(|| panic!("no {name} in {figures}"));
    let names = ["greedy", "avg@4", "pass@1", "pass@4", "maj@1", "maj@4"];
    for name in names {
        let interval = floats(&figures["ci95"][name]);
        assert!(interval[0] < share(name) && share(name) < interval[1], "{name}: {figures}");
        assert_eq!(figures["questions"][name], 24, "{name}");
    }
    // one draw succeeds as often as the mean of four, and the best of four oftener
    assert_eq!((share("avg@4"), share("pass@1")), (share("pass@1"), share("sampled")));
    assert!(share("pass@4") > share("pass@1"), "{figures}");
    let lines = told(&[]);
    for name in names {
        let line = lines.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {lines}"));
        assert!(line.contains(&format!(" {:.3} ", share(name))), "the same seed, another share: {line}");
    }
    let refusal = complaint(&["eval", "arithmetic", "--samples", "4", "--k", "8"], "");
    assert!(refusal.contains("expected 1 to the 4 samples of each question, got 8"), "{refusal}");
}

#[test]
fn quantize_writes_what_a_run_takes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("nf4").display().to_string();
    let quantize = ["quantize", "--model", "embedded", "--nested", "--out", &out];
    let output = folgore(&quantize).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(complaint(&quantize, "").contains("expected a new or an empty folder"));
    // the same numbers as the base that is coded when it is read
    let rows = lines(&[json!({"ids": [5, 6, 7, 8, 9]})]);
    let coded = parsed(&piped(&["score", "--model", &out], &rows).stdout);
    let plain = parsed(&piped(&["score", "--model", "embedded"], &rows).stdout);
    assert!(coded[0]["logprobs"].is_array() && coded != plain, "{coded:?}");
}

#[test]
fn bench_telemetry_sends_the_spans_of_every_step() {
    let args = ["bench", "telemetry", "--json", "--steps", "4", "rollout.num_prompts=2", "rollout.num_generations=2"];
    let output = folgore(&args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = &parsed(&output.stdout)[0];
    for seconds in ["traced_s", "plain_s", "ratio"] {
        assert!(said[seconds].as_f64().unwrap() > 0.0, "{said}");
    }
    assert_eq!(said["lost"], 0, "{said}");
    // Four steps to warm up and four that count, all but the second run's first traced once: four samples each.
    assert!(said["exported"].as_u64().unwrap() >= 7 * 4 * 7, "{said}");
}

/// The bench of the fleet on two processes for a moment: real workers, steps, policies that arrive.
#[test]
fn bench_scale_measures_real_workers() {
    let nats = folgore_actors::nats::server::nats_server_for_tests().unwrap();
    let quick = ["--seconds", "4", "--warmup", "1", "--mean", "0.2", "--publish-every", "1", "--adapter-mb", "0.2"];
    for (configuration, hosts) in [(&["--processes", "2x3"][..], 1), (&["--processes", "2", "--host-each"][..], 2)] {
        let args = ["bench", "scale", "--json"].iter().chain(configuration).chain(&quick).copied();
        let output = folgore(&args.collect::<Vec<_>>()).env("FOLGORE_NATS_SERVER", &nats).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report = parsed(&output.stdout).remove(0);
        let line = &report["lines"][0];
        let positive = ["samples", "steps", "samples_per_s", "efficiency", "mean_drawn_s", "wire_mb_s", "bound_s"];
        for name in positive {
            assert!(line[name].as_f64().is_some_and(|n| n > 0.0), "{name} in {line}");
        }
        assert!(line["served_s"]["count"].as_u64().is_some_and(|n| n > 0), "{line}");
        assert_eq!((&line["hosts"], &line["refused"]), (&json!(hosts), &json!({})), "{line}");
    }
    let refusal = complaint(&["bench", "scale", "--mean", "0"], "");
    assert!(refusal.contains("--mean"), "{refusal}");
}
