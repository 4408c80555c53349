//! `folgore bench memory`: the memory that a training step takes, for bases of several sizes, and how near the planner comes to it.
//!
//! Each base is trained for one step in a process of its own, so that peaks do not mix. What is measured is the whole process, from
//! its start over loading, sampling, learning and saving to its end.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use folgore_learner::{alarm::Alarm, evaluation::Evaluated, learner::Witness};
use folgore_model::files::random;
use folgore_protocol::{Batch, Outcome, ScoreItem};
use folgore_reward::{PerItem, Rule};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{meter, solo};
use crate::{
    base::Base,
    capacity::Part,
    cli::{ConfigArgs, bench::MemoryArgs},
    commands::train::{ingredients, load_config},
};

/// Tokens of the prompt and of each completion, and completions: one group.
const PROMPT: usize = 448;
const NEW: usize = 64;
const SAMPLES: usize = 4;

/// Runs the command.
pub fn run(args: &MemoryArgs) -> Result<()> {
    if let Some(shape) = args.shape.iter().find(|shape| random::shape(shape).is_none()) {
        bail!("--shape {shape}: expected some of {}", random::SHAPES.join(", "));
    }
    if args.here {
        let [shape] = args.shape.as_slice() else { bail!("--here: expected one --shape") };
        return say(&(serde_json::to_string(&measure(shape, &args.given)?)? + "\n"));
    }
    let mut lines = Vec::new();
    for shape in &args.shape {
        if !args.json {
            eprintln!("measuring {shape} ...");
        }
        lines.push(apart(shape, &args.given)?);
    }
    say(&if args.json { serde_json::to_string(&lines)? + "\n" } else { table(&lines) })
}

fn say(text: &str) -> Result<()> {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// What one base came to.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    shape: String,
    /// How the base is held.
    form: String,
    /// Trained weights.
    trained: usize,
    predicted: Vec<Part>,
    predicted_bytes: u64,
    /// Peaks of the whole process so far, in bytes.
    peak_loaded: u64,
    peak_learnt: u64,
    peak_bytes: u64,
    /// Bytes of base and head as they lie in memory.
    base_bytes: u64,
    load_s: f64,
    /// The step's line of `metrics.jsonl`.
    step: Map<String, Value>,
}

/// Measures `shape` in a process of its own.
fn apart(shape: &str, given: &[String]) -> Result<Line> {
    let mut child = Command::new(std::env::current_exe().context("the path of this executable")?);
    child.args(["bench", "memory", "--here", "--shape", shape]).args(given);
    let output = child.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("a process to measure in")?;
    if !output.status.success() {
        bail!("{shape}: the process that was measured ended with {}", output.status);
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{shape}: what the measured process printed"))
}

/// Trains the base of `shape` for one step in this process.
fn measure(shape: &str, given: &[String]) -> Result<Line> {
    let folder = tempfile::tempdir().context("a folder for the question")?;
    let mut sources = vec![write_config(folder.path(), shape)?];
    sources.extend_from_slice(given);
    let config = load_config(&ConfigArgs { given: sources, ..ConfigArgs::default() })?;
    let mut predicted = None;
    let begin = Instant::now();
    let (mut what, adapter) = ingredients(config, None, true, |memory| {
        predicted = Some(memory.clone());
        Ok(())
    })?;
    let memory = predicted.context("no prediction")?;
    what.reward = Arc::new(PerItem::new(MeanToken));
    let load_s = begin.elapsed().as_secs_f64();
    let peak_loaded = peak()?;
    let witness = Arc::new(Stepped::default());
    solo::train(&what, adapter.as_ref(), witness.clone())?;
    let (step, peak_learnt) =
        witness.0.lock().unwrap_or_else(PoisonError::into_inner).take().context("no step was made")?;
    Ok(Line {
        shape: shape.to_owned(),
        form: Base::of(&what.config.model)?.form().unwrap_or("as drawn, f32").to_owned(),
        trained: what.lora.shape().parameters(what.policy.config()),
        predicted_bytes: memory.total(),
        predicted: memory.parts,
        peak_loaded,
        peak_learnt,
        peak_bytes: peak()?,
        base_bytes: what.policy.bytes as u64,
        load_s,
        step,
    })
}

fn peak() -> Result<u64> {
    meter::peak_memory()
        .context("the system does not say what memory a process took at most (VmHWM of /proc/self/status)")
}

/// The run that is measured: QLoRA on all linear maps, one group.
fn write_config(folder: &Path, shape: &str) -> Result<String> {
    let question = folder.join("question.jsonl");
    let prompt: String = ('a'..='z').cycle().take(PROMPT).collect();
    fs::write(&question, json!({ "prompt": prompt, "answer": "" }).to_string() + "\n")?;
    let config = json!({
        "model": {
            "model_name_or_path": format!("{}{shape}", random::PREFIX), "dtype": "bfloat16", "load_in_4bit": true,
            "use_bnb_nested_quant": true, "gradient_checkpointing": true, "gradient_checkpointing_every": 2, "reuse_activations": false,
        },
        "data": { "dataset": question },
        "rollout": {
            "num_prompts": 1, "num_generations": SAMPLES, "max_prompt_length": PROMPT, "max_completion_length": NEW,
            "max_concurrent_sequences": SAMPLES, "kv_tokens": PROMPT + SAMPLES * (NEW + 16),
            "kv_cache_dtype": "bfloat16",
        },
        // it scores nothing: the bench brings its own
        "reward": [{ "name": "length", "args": { "cap": 0 } }],
        "optim": { "max_steps": 1, "optim": "adamw_8bit" },
        "lora": { "lora_r": 16, "lora_alpha": 32, "lora_target_modules": "all-linear" },
        "eval": { "before": false, "after": false },
        "log": { "report": false },
    });
    let path = folder.join("run.yaml");
    // JSON is YAML
    fs::write(&path, config.to_string())?;
    Ok(path.display().to_string())
}

/// Meaningless, and different in every sample, so that every sample is trained on.
struct MeanToken;

impl Rule for MeanToken {
    fn name(&self) -> &str {
        "mean_token"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        let sum: f64 = item.completion_ids.iter().map(|id| f64::from(*id)).sum();
        Outcome::scored("mean_token", sum / 1e6)
    }
}

/// Keeps the line of the step, and the peak at that time.
#[derive(Default)]
struct Stepped(Mutex<Option<(Map<String, Value>, u64)>>);

impl Witness for Stepped {
    fn stepped(&self, _step: u64, line: &Map<String, Value>, _batch: &Batch) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((line.clone(), meter::peak_memory().unwrap_or(0)));
    }
    fn alarm(&self, _: &Alarm) {}
    fn goes_on(&self, _: u64) {}
    fn evaluated(&self, _: &Evaluated) {}
    fn saved(&self, _: u64, _: &Path) {}
    fn waiting(&self, _: &str) {}
}

/// What is predicted part by part, and what was measured.
fn table(lines: &[Line]) -> String {
    let megabytes = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, cell: &dyn Fn(&Line) -> String| {
        rows.push(std::iter::once(name.to_owned()).chain(lines.iter().map(cell)).collect());
    };
    row("base", &|line| line.shape.clone());
    row("held in", &|line| line.form.clone());
    row("trained weights", &|line| format!("{:.1} M", line.trained as f64 / 1e6));
    let names: Vec<&str> =
        lines.first().map_or_else(Vec::new, |line| line.predicted.iter().map(|p| &*p.name).collect());
    for name in names {
        row(name, &|line| megabytes(line.predicted.iter().filter(|p| p.name == name).map(|p| p.bytes).sum()));
    }
    row("predicted peak", &|line| megabytes(line.predicted_bytes));
    row("measured peak", &|line| megabytes(line.peak_bytes));
    row("predicted / measured", &|line| format!("{:.3}", line.predicted_bytes as f64 / line.peak_bytes as f64));
    row("  after loading", &|line| megabytes(line.peak_loaded));
    row("  after the step", &|line| megabytes(line.peak_learnt));
    row("loading", &|line| format!("{:.1} s", line.load_s));
    let seconds =
        |line: &Line, key: &str| line.step.get(key).and_then(Value::as_f64).map_or("-".into(), |s| format!("{s:.1} s"));
    row("generating", &|line| seconds(line, "time/generate"));
    row("learning", &|line| seconds(line, "time/train"));
    let widths: Vec<usize> =
        (0..=lines.len()).map(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells =
            cells.map(|(i, (cell, width))| if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
        text += &(cells.collect::<Vec<_>>().join("  ") + "\n");
    }
    text
}
