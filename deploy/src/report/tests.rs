//! The report of a run that was made up: what it shows, and what it must not.

use folgore_protocol::StopReason;
use serde_json::json;

use super::*;
use crate::summary::{Evaluation, Hardware, Measured};

fn measured(accuracy: f64) -> Measured {
    Measured {
        accuracy: Some(accuracy),
        accuracy_se: Some(0.02),
        mean_reward: Some(accuracy),
        mean_reward_se: Some(0.02),
        any_correct: Some(accuracy),
        questions: 300,
        answers: 300,
        scored: 300,
        truncated: 0.03,
        mean_length: 27.0,
        ..Measured::default()
    }
}

fn sample(task: &str, completion: &str, reward: f64) -> Sample {
    Sample {
        episode: None,
        step: 0,
        seat: "1.0.0".into(),
        task_id: task.into(),
        decoding: Some("greedy".into()),
        prompt: Some("127+805=".into()),
        completion: completion.into(),
        reward: Some(reward),
        parts: Map::new(),
        unscored: None,
        stop_reason: StopReason::Eos,
    }
}

/// A run such as the demonstration leaves behind.
fn data() -> ReportData {
    let line = |step: u64| {
        let t = step as f64 / 40.0;
        let noise = (step * 7919 % 17) as f64 / 17.0 - 0.5;
        let line = json!({
            "step": step, "reward": 0.3 + 0.6 * t + 0.1 * noise, "loss": 0.02 * noise, "grad_norm": 0.5 + 0.2 * noise,
            "completions/mean_length": 20.0 + 12.0 * t, "completions/min_length": 8.0, "completions/max_length": 40.0 + 4.0 * noise,
            "entropy": 0.5 - 0.4 * t, "frac_reward_zero_std": 0.2 + 0.5 * t, "learning_rate": 3e-3, "mismatch/logp_abs_max": 0.0, "step_time": 0.4, "num_tokens": 3000 * step,
        });
        line.as_object().unwrap().clone()
    };
    let evaluation = |when: &str, step, a, b| Evaluation {
        when: when.into(),
        step,
        greedy: Some(measured(a)),
        sampled: Some(measured(b)),
    };
    let mut config = Config::default();
    config.model.model_name_or_path = crate::embedded::NAME.into();
    config.optim.max_steps = 40;
    ReportData {
        run: "run-1".into(),
        config_yaml: config.resolved_yaml().unwrap(),
        config,
        command: Some("folgore train".into()),
        metrics: (1..=40).map(line).collect(),
        summary: Summary {
            complete: true,
            steps: 40,
            wall_s: 31.4,
            tokens_per_s: Some(9123.0),
            mismatch_logp_abs_max: Some(0.0),
            version: "0.1.0".into(),
            hardware: Hardware { os: "Linux".into(), cpu: Some("Some CPU".into()), cores: 2, ..Hardware::default() },
            evaluations: vec![
                evaluation("before", 0, 0.31, 0.33),
                evaluation("step-20", 20, 0.62, 0.6),
                evaluation("after", 40, 0.93, 0.9),
            ],
            ..Summary::default()
        },
        before: vec![sample("arithmetic/1", "<answer>931</answer>", 0.0), sample("arithmetic/2", "", 0.0)],
        after: vec![
            sample("arithmetic/1", "<think>7+5=12,c1</think><answer>932</answer>", 1.0),
            sample("arithmetic/2", "</pre>", 1.0),
        ],
    }
}

/// Where a person can look at it: the variable names a file to write.
#[test]
fn the_page_holds_every_part() {
    let page = page(&data());
    for part in [
        "<title>run-1 · Folgore</title>",
        "31.0\u{202f}%",
        "93.0\u{202f}%",
        "+62.0 ± 2.8 points",
        "Reward in training",
        "Accuracy on held-out questions",
        "bit for bit, in every step",
        "does not show a model discovering arithmetic",
        "&lt;answer&gt;931&lt;/answer&gt;",
        "model_name_or_path: embedded",
        "Some CPU",
        "step-20",
    ] {
        assert!(page.contains(part), "the page lacks {part:?}");
    }
    if let Some(path) = std::env::var_os("FOLGORE_REPORT_OUT") {
        write(Path::new(&path), &data()).unwrap();
    }
}

#[test]
fn nothing_is_loaded_from_elsewhere_and_every_element_is_closed() {
    let page = page(&data());
    for foreign in ["http:", "https:", "src=", "<script", "@import", "url("] {
        assert!(!page.contains(foreign), "the page holds {foreign}");
    }
    for element in
        ["section", "div", "figure", "svg", "table", "tr", "article", "pre", "details", "dl", "p", "span", "main"]
    {
        let count = |text: &str| page.matches(text).count();
        let opened = count(&format!("<{element}>")) + count(&format!("<{element} "));
        assert_eq!(opened, count(&format!("</{element}>")), "<{element}>");
    }
}

#[test]
fn what_a_run_says_cannot_act() {
    let bad = "<script>alert(1)</script>\"'&";
    let mut data = data();
    data.run = bad.into();
    data.config_yaml = bad.into();
    data.command = Some(bad.into());
    data.config.model.model_name_or_path = bad.into();
    data.summary.version = bad.into();
    data.summary.hardware = Hardware { os: bad.into(), cpu: Some(bad.into()), isa: bad.into(), ..Hardware::default() };
    data.summary.evaluations[0].when = bad.into();
    for sample in data.before.iter_mut().chain(&mut data.after) {
        (sample.task_id, sample.completion, sample.prompt) = (bad.into(), bad.into(), Some(bad.into()));
    }
    data.before[0].reward = None;
    data.before[0].unscored = Some(bad.into());
    let page = page(&data);
    assert!(!page.contains("<script"));
    assert!(page.matches("&lt;script&gt;").count() >= 12);
}

#[test]
fn a_control_says_so_and_a_real_model_claims_nothing() {
    let mut data = data();
    data.config.optim.learning_rate = 0.0;
    data.config.model.model_name_or_path = "some/model".into();
    let page = page(&data);
    assert!(page.contains("Control run") && !page.contains("discovering arithmetic"));
}

#[test]
fn a_run_that_has_only_begun_is_shown_too() {
    let run = tempfile::tempdir().unwrap();
    assert!(format!("{:#}", from_run_dir(run.path()).unwrap_err()).contains("config.yaml"));
    fs::write(run.path().join("config.yaml"), Config::default().resolved_yaml().unwrap()).unwrap();
    let begun = from_run_dir(run.path()).unwrap();
    assert!(page(&begun).contains("not finished"));
    fs::write(run.path().join("metrics.jsonl"), "{\"step\":1,\"reward\":0.5}\n").unwrap();
    fs::create_dir(run.path().join("samples")).unwrap();
    let step = |n: u64, text: &str| {
        let sample = Sample { step: n, decoding: None, ..sample("t", text, 0.0) };
        fs::write(run.path().join(format!("samples/step-{n}.jsonl")), serde_json::to_string(&sample).unwrap() + "\n")
            .unwrap();
    };
    step(1, "early words");
    step(10, "late words");
    let data = from_run_dir(run.path()).unwrap();
    let page = page(&data);
    assert!(page.find("early words").unwrap() < page.find("late words").unwrap());
    write(&run.path().join(FILE), &data).unwrap();
    assert!(fs::read_to_string(run.path().join(FILE)).unwrap().starts_with("<!doctype html>"));
}
