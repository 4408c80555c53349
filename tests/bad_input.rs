//! What the world can get wrong: each is one line that names the thing and the way out, an exit code that is not zero, and
//! no panic.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use support::{folder, folgore, raw_metrics, refused, root, run};

/// `folgore train` in the folder `at`, short and without evaluations.
fn train(at: &Path, args: &[&str]) -> Command {
    let mut command = folgore(["train", "arithmetic", "run.output_dir=runs", "optim.max_steps=2"]);
    command.args(["rollout.num_prompts=2", "rollout.num_generations=4", "eval.before=false", "eval.after=false"]);
    command.args(args).current_dir(at);
    command
}

/// A file in `at` with the given text.
fn file(at: &Path, name: &str, text: impl AsRef<[u8]>) -> String {
    fs::write(at.join(name), text).unwrap();
    name.to_owned()
}

fn setting(key: &str, value: &str) -> String {
    format!("{key}={value}")
}

/// A copy of the embedded policy's folder that may be spoiled.
fn model(at: &Path, name: &str) -> PathBuf {
    let folder = at.join(name);
    fs::create_dir(&folder).unwrap();
    let all = fs::read_dir(root().join("deploy/embedded/arithmetic")).unwrap().map(Result::unwrap);
    for file in all.filter(|entry| entry.path().is_file()) {
        fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    folder
}

#[test]
fn a_file_that_is_not_there() {
    let at = folder();
    let at = at.path();
    refused(train(at, &["nothing.yaml"]), &["nothing.yaml", "No such file", "presets"]);
    refused(train(at, &["--model", "nowhere"]), &["nowhere", "no such model", "deploy/models"]);
    let mut on_the_hub = train(at, &["--model", "owner/name"]);
    on_the_hub.env("HF_HUB_OFFLINE", "1").env("HF_HOME", at);
    let way_out: &[&str] =
        if cfg!(feature = "hub") { &["HF_HUB_OFFLINE", "the cache"] } else { &["`hub`", "its folder"] };
    refused(on_the_hub, &[&["owner/name"], way_out].concat());
    refused(train(at, &["model.model_revision=v1"]), &["model.model_revision", "a name on the hub", "embedded"]);
    refused(train(at, &["data.dataset=nothing.jsonl"]), &["nothing.jsonl", "No such file", "data.dataset"]);
    refused(train(at, &["--adapter", "nowhere"]), &["nowhere", "adapter_config.json is missing"]);
    refused(train(at, &["--resume", "nothing"]), &["nothing", "no such run in runs"]);
    refused(folgore(["inspect", "nothing", "--output-dir"]).arg_of(at), &["nothing", "no such run"]);
    refused(folgore(["score", "--in", "nothing.jsonl"]).arg_of(at), &["nothing.jsonl", "No such file"]);
    assert!(!at.join("runs").exists(), "a refused run leaves nothing behind");
}

/// The folder as the last argument, and as the current one.
trait In {
    fn arg_of(self, at: &Path) -> Command;
}

impl In for Command {
    fn arg_of(mut self, at: &Path) -> Command {
        if self.get_args().any(|a| a == "--output-dir") {
            self.arg(at);
        }
        self.current_dir(at);
        self
    }
}

#[test]
fn a_configuration_that_is_none() {
    let at = folder();
    let at = at.path();
    refused(train(at, &["optim.lerning_rate=1"]), &["optim.lerning_rate", "did you mean `optim.learning_rate`"]);
    let unknown = file(at, "unknown.yaml", "run:\n  seed: 1\n  sed: 2\n");
    refused(train(at, &[&unknown]), &["unknown.yaml:3:3", "`run.sed`", "run.seed"]);
    let tab = file(at, "tab.yaml", "run:\n  seed: 1\n\tname: x\n");
    refused(train(at, &[&tab]), &["tab.yaml:3:1", "tab"]);
    let open = file(at, "open.yaml", "run: [1\n");
    refused(train(at, &[&open]), &["open.yaml:2:1", "expected ',' or ']'"]);
    let twice = file(at, "twice.yaml", "run:\n  seed: 1\n  seed: 2\n");
    refused(train(at, &[&twice]), &["twice.yaml", "seed"]);
    let wrong = file(at, "wrong.yaml", "optim:\n  learning_rate: much\n");
    refused(train(at, &[&wrong]), &["wrong.yaml:2", "optim.learning_rate", "expected", "much"]);
    let ruleless = file(at, "ruleless.yaml", "run:\n  seed: 1\n");
    let mut alone = folgore(["train", &ruleless]);
    alone.current_dir(at);
    refused(alone, &["reward", "at least one rule"]);
    let bytes = file(at, "bytes.yaml", [0xff, 0xfe, 0x00, 0x80]);
    refused(train(at, &[&bytes]), &["bytes.yaml"]);
    refused(train(at, &["optim.max_steps=0"]), &["optim.max_steps", "at least 1"]);
    refused(train(at, &["rollout.temperature=-1"]), &["rollout.temperature", "above 0", "-1"]);
    refused(train(at, &["rollout.temperature"]), &["rollout.temperature", "No such file"]);
    refused(train(at, &["rollout.num_generations=1"]), &["num_generations"]);
    refused(train(at, &["algo.loss_type=cispo"]), &["epsilon_high"]);
    for name in ["../x", "a/b", "", "с"] {
        refused(train(at, &["--run-name", name]), &["run.name", "A-Z a-z 0-9"]);
    }
    assert!(!at.join("runs").exists(), "a refused run leaves nothing behind");
}

#[test]
fn a_dataset_with_nothing_to_ask() {
    let at = folder();
    let at = at.path();
    let dataset = |name: &str, text: &str| setting("data.dataset", &file(at, name, text));
    refused(train(at, &[&dataset("empty.jsonl", "")]), &["empty.jsonl", "at least one", "data.dataset"]);
    refused(train(at, &[&dataset("blank.jsonl", "\n\n\n")]), &["blank.jsonl", "at least one", "data.dataset"]);
    refused(train(at, &[&dataset("list.json", "[]")]), &["list.json", "at least one", "data.dataset"]);
    let torn = dataset("torn.jsonl", "{\"prompt\": \"1+1=\", \"answer\": \"2\"}\n{\"prompt\": \n");
    refused(train(at, &[&torn]), &["torn.jsonl", "row 2 (line 2)", "data.on_bad_row=skip"]);
    let shapeless = dataset("shapeless.jsonl", "{\"a\": 1}\n{\"a\": 2}\n");
    refused(train(at, &[&shapeless]), &["shapeless.jsonl", "prompt"]);
    let held = dataset("held.jsonl", "{\"prompt\": \"1+1=\", \"answer\": \"2\"}\n");
    refused(train(at, &[&held, "data.eval_dataset=held.jsonl"]), &["held.jsonl"]);
    assert!(!at.join("runs").exists(), "a refused run leaves nothing behind");
}

#[test]
fn a_prompt_longer_than_the_context() {
    let at = folder();
    let at = at.path();
    let row = |prompt: &str| format!("{{\"prompt\": {prompt:?}, \"answer\": \"2\"}}\n");
    let rows: String = (100..120).map(|i| row(&format!("{i}+{i}="))).chain([row(&"1+".repeat(300))]).collect();
    file(at, "long.jsonl", &rows);
    let long = ["data.dataset=long.jsonl", "data.eval_fraction=0"];
    let way_out = "data.on_bad_row=skip";
    refused(train(at, &long), &["long.jsonl", "long:21", "600 tokens", "context holds 256", way_out]);
    file(at, "longer.jsonl", rows.replace(&"1+".repeat(300), "1+1+1+1+1+1+1+1+1="));
    let longer = ["data.dataset=longer.jsonl", "data.eval_fraction=0"];
    refused(train(at, &longer), &["longer:21", "18 tokens", "rollout.max_prompt_length 16", way_out]);
    assert!(!at.join("runs").exists(), "a refused run leaves nothing behind");
    let skipped = run(train(at, &[long.as_slice(), &["data.on_bad_row=skip"]].concat())).well();
    let told =
        skipped.stderr.lines().any(|l| l.starts_with("warning: ") && l.contains("long.jsonl") && l.contains("600"));
    assert!(told, "{}", skipped.stderr);

    let prompt = file(at, "prompt.jsonl", format!("{{\"prompt\": {:?}}}\n", "1+".repeat(300)));
    let generate = folgore(["generate", "--in", &prompt]).arg_of(at);
    refused(generate, &["prompt.jsonl", "line 1", "600 tokens", "context holds 256"]);
}

#[test]
fn a_model_that_does_not_fit_together() {
    let at = folder();
    let at = at.path();
    let refused_model = |name: &str, names: &[&str]| refused(train(at, &["--model", name]), names);

    let other = model(at, "tokenizer");
    fs::copy(root().join("tests/parity/fixtures/tiny-tied/tokenizer.json"), other.join("tokenizer.json")).unwrap();
    refused_model("tokenizer", &["tokenizer", "vocabulary", "64 ids", "this model's tokenizer?"]);

    let without = model(at, "without");
    fs::remove_file(without.join("tokenizer.json")).unwrap();
    refused_model("without", &["without", "tokenizer.json is missing"]);

    let short = model(at, "short").join("model.safetensors");
    let bytes = fs::read(&short).unwrap();
    fs::write(&short, &bytes[..bytes.len() / 2]).unwrap();
    refused_model("short", &["short/model.safetensors", "expected"]);

    let lying = model(at, "lying").join("model.safetensors");
    fs::write(&lying, [&u64::MAX.to_le_bytes(), &bytes[8..]].concat()).unwrap();
    refused_model("lying", &["lying/model.safetensors", "header"]);

    let pickle = model(at, "pickle");
    fs::rename(pickle.join("model.safetensors"), pickle.join("pytorch_model.bin")).unwrap();
    refused_model("pickle", &["pytorch_model.bin", "pickle", "safetensors"]);

    let rope = model(at, "rope").join("config.json");
    let config = fs::read_to_string(&rope).unwrap();
    fs::write(&rope, config.replacen('{', "{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0},", 1)).unwrap();
    refused_model("rope", &["rope", "rope_scaling"]);

    let garbage = file(at, "garbage.gguf", "garbage that is no model");
    refused_model(&garbage, &["garbage.gguf", "GGUF"]);

    let foreign = root().join("tests/parity/fixtures/adapter-untied").display().to_string();
    refused(train(at, &["--adapter", &foreign]), &["adapter-untied", "expected", "this base model?"]);
    assert!(!at.join("runs").exists(), "a refused run leaves nothing behind");
}

#[test]
fn a_reward_that_is_unknown_or_no_number() {
    let at = folder();
    let at = at.path();
    refused(train(at, &["reward=[{name: exact_mach}]"]), &["exact_mach", "did you mean \"exact_match\"", "numeric"]);
    refused(train(at, &["reward=[{name: exact_match, args: {tagg: x}}]"]), &["exact_match", "tagg"]);
    refused(train(at, &["reward=[{name: exact_match, weight: .nan}]"]), &["weight", "finite number", "NaN"]);
    // each score is a number, their weighted sum is not: no sample is ever scored, and none is taken for a 0
    let one = "{name: exact_match, weight: 1.0e308, args: {malformed_score: 1.0, format_score: 1.0}}";
    let infinite = format!("reward=[{one}, {one}, {one}]");
    refused(
        train(at, &[&infinite, "--run-name", "infinite"]),
        &["weighted reward", "finite sum", "inf", "look at the reward"],
    );
    assert_eq!(raw_metrics(&at.join("runs/infinite")).len(), 0, "nothing was trained on");
}

#[test]
fn a_name_that_is_taken() {
    let at = folder();
    let at = at.path();
    run(train(at, &["--run-name", "mine"])).well();
    let before = raw_metrics(&at.join("runs/mine"));
    refused(train(at, &["--run-name", "mine"]), &["runs/mine", "--resume mine", "another --run-name"]);
    assert_eq!(before, raw_metrics(&at.join("runs/mine")), "the run that is there is untouched");
}

#[test]
fn a_folder_that_cannot_be_written() {
    let at = folder();
    let at = at.path();
    file(at, "runs", "a file where a folder should be");
    refused(train(at, &["--run-name", "x"]), &["runs/x", "cannot make the run's folder"]);
}

/// Runs `command` so that everything it writes below `at` lies on a disk of `size`, which is gone with it: a file system in
/// memory where that may be mounted, else a limit on the size of each file.
fn on_a_small_disk(command: &Command, at: &Path, size: u64) -> Command {
    let after = |first: &str, mut shell: Command| {
        let script = format!("{first} && exec \"$@\"");
        shell.args(["sh", "-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
        shell.current_dir(command.get_current_dir().unwrap());
        shell
    };
    let unshare = |flags: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(flags);
        unshare
    };
    let mount = format!("mount -t tmpfs -o size={size} folgore {:?}", at.display().to_string());
    for flags in [&["--mount"][..], &["--user", "--map-root-user", "--mount"]] {
        let tried = unshare(flags).args(["sh", "-c", &mount]).stderr(Stdio::null()).status();
        if tried.is_ok_and(|status| status.success()) {
            return after(&mount, unshare(flags));
        }
    }
    // a write beyond the limit fails, as the signal that would end the process is ignored; no file may take more than an
    // eighth of the disk, in blocks of 512 bytes
    after(&format!("trap '' XFSZ && ulimit -f {}", size / 512 / 8), Command::new("env"))
}

#[test]
fn a_disk_that_is_full() {
    let outer = folder();
    let disk = outer.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let runs = disk.display().to_string();
    for kib in [64, 1024, 4096] {
        let wanted =
            ["--output-dir", &runs, "--run-name", "x", "checkpoint.save_steps=1", "checkpoint.save_total_limit=1000"];
        let mut command = train(outer.path(), &[]);
        command.args(wanted).arg("optim.max_steps=10000");
        let said = refused(on_a_small_disk(&command, &disk, kib << 10), &["free some space"]);
        assert!(said.contains("No space left") || said.contains("too large"), "{said}");
        assert!(said.contains(&runs), "{said}");
        for entry in fs::read_dir(&disk).unwrap() {
            fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
    }
}

#[test]
fn a_reader_that_went_away_does_not_end_the_run() {
    let at = folder();
    let at = at.path();
    let mut command = train(at, &["--run-name", "piped", "optim.max_steps=6"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("panicked"), "{}: {said}", output.status);
    assert_eq!(raw_metrics(&at.join("runs/piped")).len(), 6);
}

#[test]
fn rows_that_name_what_is_wrong_with_them() {
    let at = folder();
    let at = at.path();
    let rows = file(at, "ids.jsonl", "{\"ids\": [2, 900]}\n");
    refused(folgore(["score", "--in", &rows]).arg_of(at), &["ids.jsonl", "line 1", "900", "vocabulary of 64"]);
    let rows = file(at, "text.jsonl", "{\"text\": \"1+1=\"}\n{\"txt\": \"\"}\n");
    refused(folgore(["score", "--in", &rows]).arg_of(at), &["text.jsonl", "line 2"]);
}
