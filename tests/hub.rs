//! Names on the Hugging Face hub wherever a model is named, against a small hub on this machine.

#[path = "../hub/tests/server/mod.rs"]
mod server;
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use folgore_actors::nats::server::{LocalServer, ServerOptions, nats_server_for_tests};
use serde_json::Value;
use server::{Hub, Repo};
use support::{Running, checkpoints, folder, folgore, metrics, refused, root, run};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba98";
const NAME: &str = "owner/sums";
/// A short training on the policy that is on the hub.
const SHORT: [&str; 7] = [
    "arithmetic",
    "model.model_name_or_path=owner/sums",
    "optim.max_steps=2",
    "rollout.num_prompts=2",
    "rollout.num_generations=4",
    "eval.before=false",
    "eval.after=false",
];

fn fixture(name: &str) -> PathBuf {
    root().join("tests/parity/fixtures").join(name)
}

/// A hub with the embedded policy on it.
fn hub() -> Hub {
    Hub::with(NAME, Repo::of(&root().join("deploy/embedded/arithmetic"), COMMIT))
}

/// The executable, of a user who lives in `at` and looks at `hub`.
fn at(hub: &Hub, at: &Path, args: &[&str]) -> Command {
    let mut command = folgore(args);
    for name in [
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
    ] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", &hub.url).env("HF_HOME", at.join("hf")).env("FOLGORE_CACHE", at).current_dir(at);
    command
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_keeps_to_the_commit_that_it_found() {
    let (hub, place) = (hub(), folder());
    let user = |args: &[&str]| at(&hub, place.path(), args);
    let pinned = format!("{NAME}@{COMMIT}");
    run(user(&[&["train", "--run-name", "r"], &SHORT[..]].concat())).well();
    let dir = place.path().join("runs/r");
    let config = fs::read_to_string(dir.join("config.yaml")).unwrap();
    assert!(config.contains(&format!("model_name_or_path: {NAME}\n")), "{config}");
    assert!(config.contains(COMMIT), "{config}");
    assert_eq!(json(&dir.join("summary.json"))["model"], pinned.as_str());
    let checkpoint = dir.join("checkpoints/checkpoint-2");
    let adapter = json(&checkpoint.join("adapter_config.json"));
    assert_eq!((&adapter["base_model_name_or_path"], &adapter["revision"]), (&NAME.into(), &COMMIT.into()));
    assert!(fs::read_to_string(checkpoint.join("agent_config.yaml")).unwrap().contains(&pinned));

    // the branch is another model now, which a run does not notice
    let moved = Repo::of(&fixture("tiny-tied"), OTHER);
    hub.state().repos.get_mut(NAME).unwrap()[0].revisions.clear();
    hub.state().repos.get_mut(NAME).unwrap().push(moved);
    hub.asked();
    run(user(&["train", "--resume", "r", "optim.max_steps=3"])).well();
    assert_eq!((metrics(&dir).len(), checkpoints(&dir).contains(&3)), (3, true));
    assert!(run(user(&["inspect", "r"])).well().stdout.contains(&pinned));
    for kind in ["peft", "merged"] {
        let mut export = user(&["export", "r", "--to", kind, "--out", kind]);
        run(std::mem::replace(export.env("HF_HUB_OFFLINE", "1"), Command::new("true"))).well();
        let card = fs::read_to_string(place.path().join(kind).join("README.md")).unwrap();
        assert!(card.contains("base_model: \"owner/sums\"\n") && card.contains(&format!("`{pinned}`")), "{card}");
        run(user(&["export", "--check", kind])).well();
    }
    assert_eq!(json(&place.path().join("peft/adapter_config.json"))["revision"], COMMIT);
    assert_eq!(hub.asked(), [], "a commit that is there costs no question");

    // an adapter tells which commit it is for
    let copy = place.path().join("elsewhere");
    fs::create_dir(&copy).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(place.path().join("peft").join(file), copy.join(file)).unwrap();
    }
    run(user(&["export", "elsewhere", "--to", "merged", "--out", "again"])).well();
    assert_eq!(json(&place.path().join("again/export.json"))["base"], pinned.as_str());

    // and without a commit, the branch is what it is now
    run(user(&["train", "--run-name", "next", "--dry-run", SHORT[0], SHORT[1]])).well();
    assert!(hub.asked().iter().any(|asked| asked.what.contains(OTHER)));
}

#[test]
fn every_command_takes_a_name() {
    let (hub, place) = (Hub::with("owner/tiny", Repo::of(&fixture("tiny-tied"), COMMIT)), folder());
    hub.state().repos.insert("owner/adapter".into(), vec![Repo::of(&fixture("adapter-tied-rslora"), OTHER)]);
    let mut gguf = Repo { commit: OTHER.into(), revisions: vec!["main".into()], ..Repo::default() };
    gguf.files.insert("tiny.gguf".into(), fs::read(fixture("tiny-gguf/tiny.gguf")).unwrap());
    hub.state().repos.insert("owner/gguf".into(), vec![gguf]);
    fs::write(place.path().join("rows.jsonl"), "{\"text\": \"a b c\"}\n").unwrap();
    let said = |command: &str, model: &str, more: &[&str]| {
        let args = [&[command, "--in", "rows.jsonl", "--model", model], more].concat();
        run(at(&hub, place.path(), &args)).well().stdout
    };
    let (base, adapter) =
        (fixture("tiny-tied").display().to_string(), fixture("adapter-tied-rslora").display().to_string());

    assert_eq!(said("tokenize", "owner/tiny", &[]), said("tokenize", &base, &[]));
    assert!(hub.asked().iter().all(|asked| !asked.what.contains("safetensors")), "a tokenizer needs no weights");
    assert_eq!(said("score", "owner/tiny", &[]), said("score", &base, &[]));
    let plain = said("score", &base, &[]);
    let adapted = said("score", "owner/tiny@main", &["--adapter", "owner/adapter"]);
    assert_eq!(adapted, said("score", &base, &["--adapter", &adapter]));
    assert_ne!(adapted, plain);
    let file = fixture("tiny-gguf/tiny.gguf").display().to_string();
    assert_eq!(said("score", "owner/gguf:tiny.gguf", &[]), said("score", &file, &[]));

    fs::write(place.path().join("rows.jsonl"), "{\"prompt\": \"a b c\"}\n").unwrap();
    let greedy = ["--temperature", "0", "--max-new-tokens", "4"];
    assert_eq!(said("generate", "owner/tiny", &greedy), said("generate", &base, &greedy));

    // an adapter to start from is pinned as its base is
    let dry = ["train", "arithmetic", "--model", "owner/tiny", "--adapter", "owner/adapter", "--dry-run"];
    assert!(run(at(&hub, place.path(), &dry)).well().stdout.contains(&format!("model_revision: {COMMIT}\n")));
}

#[test]
fn what_cannot_be_had_is_one_line() {
    let (hub, place) = (hub(), folder());
    let user = |model: &str| at(&hub, place.path(), &["generate", "--model", model]);
    refused(user("owner/nothing"), &["owner/nothing", "no such model", "here", "HF_TOKEN"]);
    refused(user("owner/sums@v1"), &["owner/sums", "v1"]);
    refused(user("owner/sums:x.gguf"), &["owner/sums", "x.gguf"]);
    let mut offline = user(NAME);
    offline.env("HF_HUB_OFFLINE", "1");
    refused(offline, &[NAME, "HF_HUB_OFFLINE", place.path().join("hf/hub").to_str().unwrap()]);
    hub.state().repos.get_mut(NAME).unwrap()[0].gate = Some("hf_let_in".into());
    refused(user(NAME), &[NAME, "gated", &format!("{}/{NAME}", hub.url), "HF_TOKEN"]);
    let mut let_in = user(NAME);
    let_in.env("HF_TOKEN", "hf_let_in");
    run(let_in).well();
    fs::remove_dir_all(place.path().join("hf")).unwrap();
    hub.state().faults.damage = true;
    let mut damaged = user(NAME);
    damaged.env("HF_TOKEN", "hf_let_in");
    refused(damaged, &["model.safetensors", "sha256", "thrown away"]);
}

#[test]
fn workers_take_the_commit_of_the_head() {
    let (hub, place, served) = (hub(), folder(), folder());
    let executable = nats_server_for_tests().unwrap();
    let server = LocalServer::start_with(executable, ServerOptions::new(served.path())).unwrap();
    let url = server.url();
    let embedded = root().join("deploy/embedded/arithmetic").display().to_string();
    let worker = ["worker", "--nats", &url, "--run", "r", "--name"];
    // one that has the model by its name, and one that has it elsewhere
    let crew = [&["named"][..], &["local", "--model", &embedded]]
        .map(|more| Running::start(at(&hub, place.path(), &[&worker, more].concat())));
    let head = [&["train", "--nats", &url, "--run-name", "r"], &SHORT[..]].concat();
    run(at(&hub, place.path(), &head)).well();
    for mut worker in crew {
        assert!(worker.until_it_says("at work for run r"));
        worker.signal("INT");
        worker.end().well();
    }
    let listings: Vec<String> =
        hub.asked().into_iter().map(|a| a.what).filter(|what| what.contains("/revision/")).collect();
    assert!(listings[0].ends_with("/main") && listings[1..].iter().all(|what| what.ends_with(COMMIT)), "{listings:?}");
}
