//! Rewards outside of the executable, with their faults for real: child processes that crash, hang, talk nonsense and start
//! slowly, and a server that does as much.

mod server;

use std::{path::Path, sync::Arc, time::Duration};

use folgore_config::RewardSpec;
use folgore_protocol::{GroupId, Message, Outcome, Prompt, Scope, ScoreItem, ScoreRequest, SeatKey, StopReason};
use folgore_reward::{Reward, Rewards, build, host};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const PATIENCE: u64 = 60_000;

/// A Python file whose function does what the completion says. `once` means: in one process, and never again.
const FAULTS: &str = r#"
import asyncio, os, subprocess, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))

def once(name):
    try:
        os.close(os.open(os.path.join(HERE, name), os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False

def act(completions, answer, **columns):
    text = completions[0] if isinstance(completions[0], str) else completions[0][0]["content"]
    if text == "crash" or (text == "crash once" and once("crash")):
        print("going down", file=sys.stderr, flush=True)
        os._exit(3)
    if text == "hang" or (text == "hang once" and once("hang")):
        child = subprocess.Popen(["sleep", "1000"])
        with open(os.path.join(HERE, "pids.new"), "w") as file:
            file.write(f"{os.getpid()} {child.pid}")
        os.rename(os.path.join(HERE, "pids.new"), os.path.join(HERE, "pids"))
        time.sleep(1000)
    if text == "print":
        print("noise on standard output", flush=True)
        os.system("echo noise of a child")
        print(sys.stdin.readline())
    if text == "raise":
        raise ValueError("no gold answer")
    if text == "exit":
        sys.exit(0)
    odd = {"nan": float("nan"), "inf": float("-inf"), "none": None, "text": "1.0", "list": [1.0], "short": ...,
           "big": 1e308, "negative": -3}
    if text == "short":
        return []
    return [odd.get(text, float(len(text))) for _ in completions]

async def later(completions, **columns):
    await asyncio.sleep(0.01)
    return [0.25] * len(completions)

def columns(prompts, completions, completion_ids, trainer_state, answer, missing_somewhere):
    assert trainer_state is None and missing_somewhere == [1, None], missing_somewhere
    assert completions[0] == [{"role": "assistant", "content": "a"}] and completions[1] == "b", completions
    assert prompts == [[{"role": "user", "content": "q"}], "q"] and completion_ids == [[1, 2], [1, 2]]
    return [float(a) for a in answer]
"#;

fn item(sample: u32, completion: &str) -> ScoreItem {
    ScoreItem {
        id: SeatKey { group: GroupId(1), sample, draw: 0 },
        columns: Map::from_iter([("answer".to_owned(), json!("7"))]),
        prompt: Prompt::Text("q".into()),
        completion: completion.to_owned(),
        completion_ids: vec![1, 2],
        stop_reason: StopReason::Eos,
        said: Vec::new(),
    }
}

fn reward(spec: Value) -> Arc<dyn Reward> {
    let spec: RewardSpec = serde_json::from_value(spec).unwrap();
    build(&[spec]).unwrap_or_else(|e| panic!("{e}"))
}

/// The reward `act`, or another function, of [`FAULTS`], and the folder that holds it.
fn python(function: &str, more: Value) -> (Arc<dyn Reward>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("faults.py");
    std::fs::write(&file, FAULTS).unwrap();
    let mut spec = json!({"name": "mine", "python": format!("{}:{function}", file.display())});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    (reward(spec), folder)
}

async fn ask(reward: &Arc<dyn Reward>, completion: &str, budget_ms: u64) -> Outcome {
    let request = ScoreRequest { items: vec![item(0, completion)], budget_ms, scope: Scope::Sample };
    host::score(reward.clone(), request).await.outcomes.remove(0).1
}

async fn total(reward: &Arc<dyn Reward>, completion: &str) -> f64 {
    let outcome = ask(reward, completion, PATIENCE).await;
    outcome.total().unwrap_or_else(|| panic!("{completion}: expected a score, got {outcome:?}"))
}

async fn reason(reward: &Arc<dyn Reward>, completion: &str) -> String {
    match ask(reward, completion, PATIENCE).await {
        Outcome::Error { reason } => reason,
        other => panic!("{completion}: expected an error, got {other:?}"),
    }
}

/// Waits until the process `pid` is gone, or a zombie.
async fn gone(pid: &str) {
    let stat = format!("/proc/{pid}/stat");
    for _ in 0..3000 {
        match std::fs::read_to_string(&stat) {
            Err(_) => return,
            Ok(text) if text.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')) => return,
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("process {pid} is still there");
}

async fn file(path: &Path) -> String {
    for _ in 0..3000 {
        if let Ok(text) = std::fs::read_to_string(path) {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} never came", path.display());
}

#[tokio::test]
async fn a_function_as_trl_calls_it_scores_and_its_faults_are_never_numbers() {
    let (mine, _folder) = python("act", json!({"retries": 0, "breaker_failures": 100}));
    assert_eq!(total(&mine, "four").await, 4.0);
    assert_eq!(total(&mine, "print").await, 5.0, "prints do not reach the protocol");
    assert_eq!(total(&mine, "big").await, 1e308);
    assert_eq!(total(&mine, "negative").await, -3.0);
    assert!(matches!(ask(&mine, "none", PATIENCE).await, Outcome::Unscorable { .. }));
    for (completion, want) in [
        ("nan", "got \"NaN\""),
        ("inf", "got \"-Infinity\""),
        ("text", "got '1.0'"),
        ("list", "got [1.0]"),
        ("short", "expected 1 scores, got 0"),
        ("raise", "ValueError: no gold answer"),
        ("exit", "SystemExit: 0"),
    ] {
        let reason = reason(&mine, completion).await;
        assert!(reason.starts_with("reward mine: ") && reason.contains(want), "{completion}: {reason}");
    }
    let (later, _folder) = python("later", json!({}));
    assert_eq!(total(&later, "x").await, 0.25);
}

#[tokio::test]
async fn columns_are_lists_and_conversations_are_conversations() {
    let (columns, _folder) = python("columns", json!({}));
    let mut items = vec![item(0, "a"), item(1, "b")];
    items[0].prompt = Prompt::Messages(vec![Message::new("user", "q")]);
    items[0].columns.insert("missing_somewhere".into(), json!(1));
    items[0].columns.insert("not_asked_for".into(), json!(1));
    let reply = host::score(columns, ScoreRequest { items, budget_ms: PATIENCE, scope: Scope::Sample }).await;
    assert_eq!(reply.outcomes.iter().map(|(_, o)| o.total()).collect::<Vec<_>>(), [Some(7.0); 2], "{reply:?}");
}

#[tokio::test]
async fn a_crash_costs_its_request_and_the_next_process_serves_the_next() {
    let (mine, _folder) = python("act", json!({"retries": 1, "breaker_failures": 100}));
    let reason = reason(&mine, "crash").await;
    assert!(reason.contains("exit status: 3") && reason.contains("(asked 2 times)"), "{reason}");
    assert!(reason.contains("going down"), "its last words are told: {reason}");
    assert_eq!(total(&mine, "well").await, 4.0);
    assert_eq!(total(&mine, "crash once").await, 10.0, "asked again, of another process");
}

#[tokio::test]
async fn a_hang_ends_with_its_deadline_and_takes_all_it_started_along() {
    let (mine, folder) = python("act", json!({"timeout_s": 3, "retries": 1, "breaker_failures": 100}));
    assert_eq!(total(&mine, "hang once").await, 9.0, "asked again, of another process");
    for pid in file(&folder.path().join("pids")).await.split(' ') {
        gone(pid).await;
    }
    // A caller who leaves is as good as a deadline.
    let (mine, folder) = python("act", json!({}));
    let request = ScoreRequest { items: vec![item(0, "hang")], budget_ms: PATIENCE, scope: Scope::Sample };
    let asking = tokio::spawn(async move { mine.score(&request).await });
    let pids = file(&folder.path().join("pids")).await;
    asking.abort();
    for pid in pids.split(' ') {
        gone(pid).await;
    }
}

fn shell(script: &str, more: Value) -> Arc<dyn Reward> {
    let mut spec = json!({"name": "mine", "command": ["sh", "-c", script], "breaker_failures": 100});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    reward(spec)
}

#[tokio::test]
async fn nonsense_ends_the_process_that_said_it() {
    let garbage = shell("while read line; do echo nonsense; done", json!({"retries": 1}));
    let told = reason(&garbage, "x").await;
    assert!(told.contains("expected a JSON reply") && told.contains("nonsense"), "{told}");
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark");
    let once = format!(
        r#"n=1; if mkdir {0} 2>/dev/null; then n=x; fi
           while read line; do id=$(echo "$line" | sed 's/[^0-9]*\([0-9]*\).*/\1/'); echo "{{\"id\": $id, \"scores\": [$n]}}"; done"#,
        mark.display()
    );
    assert_eq!(total(&shell(&once, json!({})), "x").await, 1.0, "another process is asked");
    let other = shell(r#"while read line; do echo '{"id": 0, "scores": [1]}'; done"#, json!({"retries": 0}));
    assert!(reason(&other, "x").await.contains("expected a reply with id"));
    let endless = shell("head -c 9000000 /dev/zero | tr '\\0' x; sleep 100", json!({"retries": 0}));
    assert!(reason(&endless, "x").await.contains("expected a line of at most"));
    let none = reward(json!({"name": "mine", "command": ["/no/such/program"]}));
    let told = reason(&none, "x").await;
    assert!(told.contains("/no/such/program cannot be started") && !told.contains("asked"), "{told}");
    let mute = shell("exec >&-; sleep 100", json!({"retries": 0}));
    assert!(reason(&mute, "x").await.contains("closed its output"));
    let deaf = shell("sleep 100", json!({"retries": 0, "timeout_s": 0.5}));
    assert!(reason(&deaf, &"x".repeat(1 << 20)).await.contains("no reply within 0.5 s"));
}

#[tokio::test]
async fn a_slow_start_is_waited_for_and_a_process_that_ended_meanwhile_is_replaced() {
    let reply = r#"id=$(echo "$line" | sed 's/[^0-9]*\([0-9]*\).*/\1/'); echo "{\"id\": $id, \"scores\": [1]}""#;
    let slow = shell(&format!("sleep 1; while read line; do {reply}; done"), json!({"retries": 0}));
    assert_eq!(total(&slow, "x").await, 1.0);
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; read line; {reply}", pid.display());
    let short_lived = shell(&script, json!({"retries": 0}));
    for _ in 0..3 {
        assert_eq!(total(&short_lived, "x").await, 1.0);
        gone(std::fs::read_to_string(&pid).unwrap().trim()).await;
    }
}

#[tokio::test]
async fn an_address_scores_and_its_faults_are_never_numbers() {
    let server = server::start().await;
    let url = |more: Value| {
        let mut spec = json!({"name": "mine", "url": server.url(), "breaker_failures": 100});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        reward(spec)
    };
    let mine = url(json!({"retries": 1}));
    assert_eq!(total(&mine, "good").await, 0.5);
    for (completion, want, asked) in [
        ("500", "status 500", 2),
        ("429", "status 429", 2),
        ("404", "status 404", 1),
        ("302", "status 302", 1),
        ("garbage", "expected a JSON reply", 2),
        ("nan", "got \"NaN\"", 1),
        ("error", "ValueError: gone", 1),
        ("huge", "cannot be read", 2),
        ("close", "", 2),
    ] {
        let before = server.asked();
        let told = reason(&mine, completion).await;
        assert!(told.contains(want), "{completion}: {told}");
        assert_eq!(server.asked() - before, asked, "{completion}");
    }
    assert_eq!(total(&mine, "500 once").await, 0.5);
    let hasty = url(json!({"retries": 0, "timeout_s": 0.3}));
    assert!(reason(&hasty, "hang").await.contains("no reply within 0.3 s"));
    assert_eq!(total(&mine, "good").await, 0.5);
    let nobody = json!({"name": "mine", "url": "http://127.0.0.1:1/", "retries": 0, "breaker_failures": 2,
        "breaker_pause_s": 1000});
    let nobody = reward(nobody);
    assert!(reason(&nobody, "x").await.contains("onnect"));
    reason(&nobody, "x").await;
    let told = reason(&nobody, "x").await;
    assert!(told.contains("left alone for") && told.contains("onnect"), "nobody is asked for a while: {told}");
}

#[test]
fn a_function_that_is_not_there_is_told_before_it_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.py");
    std::fs::write(&file, "def short():\n    inner = 1\nif True:\n    long = len\n").unwrap();
    std::fs::write(folder.path().join("broken.py"), "def f(:\n").unwrap();
    let why = |python: String| {
        let spec = serde_json::from_value(json!({"name": "mine", "python": python})).unwrap();
        Rewards::look(&[spec]).err().map(|error| error.to_string())
    };
    let of = |name: &str, function: &str| why(format!("{}:{function}", folder.path().join(name).display()));
    assert_eq!(of("mine.py", "short"), None);
    assert_eq!(of("mine.py", "long"), None);
    for (name, function, want) in [
        ("mine.py", "shrt", "has no function shrt; it has short"),
        ("mine.py", "inner", "has no function inner"),
        ("none.py", "short", "No such file"),
        ("broken.py", "f", "invalid syntax"),
    ] {
        let told = of(name, function).unwrap();
        assert!(told.contains(want), "{told}");
    }
}
