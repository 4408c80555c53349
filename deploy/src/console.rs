//! What the user sees while a run goes on, and what is left to look at afterwards.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use folgore_learner::{alarm::Alarm, evaluation::Evaluated, learner::Witness};
use folgore_model::{backend::Backend as _, tokenizer::Tokenizer};
use folgore_protocol::{Batch, Prompt};
use serde_json::{Map, Value};

use crate::{
    compose::Ingredients,
    report::{self, Demonstration},
    run_dir::RunDir,
    samples::{Sample, Samples},
    summary::{Hardware, Measured, Summary, read_metrics},
};

/// One line for the user. Nobody reading any more is no reason to end a run.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout().lock(), $($text)*);
    }};
}

/// One line for the user.
pub(crate) fn say(line: &str) {
    tell!("{line}");
}

/// Samples of a step that are kept.
const SAMPLES_KEPT: usize = 8;

/// Shows a run on the terminal and keeps its samples and its summary.
pub struct Console {
    run: PathBuf,
    tokenizer: Arc<Tokenizer>,
    held_out: BTreeMap<String, Prompt>,
    max_steps: u64,
    logging_steps: u64,
    samples_every: Option<u64>,
    report: bool,
    demonstration: Option<&'static Demonstration>,
    resumes: bool,
    begin: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    summary: Summary,
    /// The first step of this launch and when it began, for the time left.
    first: Option<(u64, Instant)>,
    waiting: Option<String>,
}

impl Console {
    /// A console for one launch of a run, resumed from step `resumed` if there is one.
    pub fn new(what: &Ingredients, dir: &RunDir, resumed: Option<u64>, begin: Instant) -> Result<Self> {
        let c = &what.config;
        let yaml = c.resolved_yaml()?;
        let mut summary = Summary {
            run: dir.name.clone(),
            learning_rate: c.optim.learning_rate,
            seed: c.run.seed,
            model: what.policy.name.clone(),
            model_digest: what.policy.digest.short(),
            config_digest: folgore_protocol::Digest::of(yaml.as_bytes()).short(),
            version: env!("CARGO_PKG_VERSION").into(),
            hardware: Hardware::gather(),
            attempts: 1,
            procedures: what.procedures.as_ref().map(|(_, introduced)| introduced.clone()),
            ..Summary::default()
        };
        if let Some(step) = resumed.filter(|step| *step > 0) {
            summary.take_over(&dir.path, step)?;
        }
        let asked = u64::from(c.eval.eval_items).min(what.dataset.eval.len());
        let held_out = (0..asked).map(|i| what.dataset.eval.task(i)).map(|task| (task.id, task.prompt)).collect();
        Ok(Self {
            run: dir.path.clone(),
            tokenizer: what.policy.tokenizer.clone(),
            held_out,
            max_steps: c.optim.max_steps,
            logging_steps: u64::from(c.log.logging_steps.max(1)),
            samples_every: c.log.log_completions.then_some(u64::from(c.log.log_completions_steps.max(1))),
            report: c.log.report,
            demonstration: Demonstration::of(c),
            resumes: resumed.is_some(),
            begin,
            state: Mutex::new(State { summary, ..State::default() }),
        })
    }

    /// One line.
    pub fn say(&self, line: &str) {
        tell!("{line}");
    }

    /// Shows what holds the run up; an empty reason when it goes on. Unlike a wait, this may need the user.
    pub fn held_up(&self, reason: &str) {
        match reason {
            "" => tell!("going on"),
            reason => tell!("waiting for {reason}"),
        }
    }

    /// Writes summary and report, and says what came of the run.
    pub fn end(&self) -> Result<()> {
        let metrics = read_metrics(&self.run.join("metrics.jsonl"))?;
        let mut state = self.state();
        let summary = &mut state.summary;
        summary.measure(&metrics, self.begin.elapsed());
        summary.complete = summary.steps >= self.max_steps;
        summary.write(&self.run)?;
        let graded = summary.is_graded();
        let what = if graded { "reward" } else { "accuracy" };
        if let (Some(before), Some(after)) = (summary.evaluation("before"), summary.evaluation("after")) {
            for (name, before, after) in
                [("greedy", &before.greedy, &after.greedy), ("sampled", &before.sampled, &after.sampled)]
            {
                if let (Some(before), Some(after)) = (before, after) {
                    let (questions, before, after) = (after.questions, figure(before, graded), figure(after, graded));
                    tell!("held-out {what}, {name:<8} {before} -> {after}   ({questions} questions)");
                }
            }
        }
        let sum = |key: &str| metrics.iter().filter_map(|line| line.get(key)?.as_f64()).sum::<f64>();
        let (errors, unscorable) = (sum("reward/error"), sum("reward/unscorable"));
        if errors + unscorable > 0.0 {
            tell!(
                "in the groups that were trained on, the reward failed on {errors} draws and could not judge {unscorable}; none of \
                 them was scored 0, {} seats were drawn again",
                sum("rollout/refilled")
            );
        }
        let groups = sum("reward/unscored_groups");
        if groups > 0.0 {
            tell!(
                "{groups} groups were left out whole, because a member of theirs got no score however often it was drawn"
            );
        }
        if let Some(demonstration) = self.demonstration.filter(|_| summary.complete && summary.has_gained()) {
            tell!("{}", demonstration.short);
        }
        let speed = summary.tokens_per_s.map_or(String::new(), |s| format!(", {s:.0} tokens/s"));
        tell!("{} steps in {:.1} s{speed}; everything is in {}", summary.steps, summary.wall_s, self.run.display());
        drop(state);
        if self.report {
            let path = self.run.join(report::FILE);
            report::write(&path, &report::from_run_dir(&self.run)?)?;
            tell!("report: {}", path.display());
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn samples(&self) -> Samples<'_> {
        Samples::new(&self.run, &self.tokenizer)
    }
}

/// Draws on which the reward failed, where there are any.
fn errors(line: &Map<String, Value>) -> String {
    match number(line, "reward/error") {
        errors if errors > 0.0 => {
            format!("  reward errors {errors} ({:.1} %)", 100.0 * number(line, "reward/error_share"))
        }
        _ => String::new(),
    }
}

/// Searches of a completion, where the reward counts them.
fn searches(line: &Map<String, Value>) -> String {
    let mean = line.iter().find(|(key, _)| key.starts_with("rewards/") && key.ends_with("/searches/mean"));
    mean.and_then(|(_, mean)| mean.as_f64()).map_or(String::new(), |mean| format!("  searches {mean:.2}"))
}

impl Witness for Console {
    fn goes_on(&self, step: u64) {
        if self.resumes {
            self.say(&format!("resumed from step {step}"));
        }
    }

    fn stepped(&self, step: u64, line: &Map<String, Value>, batch: &Batch) {
        let mut state = self.state();
        state.waiting = None;
        let now = Instant::now();
        let step_time = number(line, "step_time");
        let (from, since) = *state.first.get_or_insert((step - 1, now - Duration::from_secs_f64(step_time)));
        drop(state);
        let per_step = since.elapsed().as_secs_f64() / (step - from) as f64;
        if step.is_multiple_of(self.logging_steps) || step == self.max_steps {
            tell!(
                "step {step:>4}/{}  reward {:.3}{}  length {:>5.1}  loss {:+.4}  grad_norm {:.3}  {:>6.0} tokens/s{}  {} left",
                self.max_steps,
                number(line, "reward"),
                searches(line),
                number(line, "completions/mean_length"),
                number(line, "loss"),
                number(line, "grad_norm"),
                number(line, "perf/tokens_per_s"),
                errors(line),
                duration(per_step * self.max_steps.saturating_sub(step) as f64),
            );
        }
        if self.samples_every.is_some_and(|every| step.is_multiple_of(every) || step == 1) {
            match self.samples().step(batch, SAMPLES_KEPT) {
                Ok(samples) => samples.first().into_iter().for_each(|s| tell!("      {}", one_line(s))),
                Err(error) => eprintln!("warning: samples of step {step} not kept: {error:#}"),
            }
        }
    }

    fn evaluated(&self, evaluated: &Evaluated) {
        let mut state = self.state();
        state.summary.note(evaluated);
        let mut text = format!("eval {:<8}", evaluated.when);
        if let Some(evaluation) = state.summary.evaluation(&evaluated.when) {
            for (name, measured) in [("greedy", &evaluation.greedy), ("sampled", &evaluation.sampled)] {
                if let Some(m) = measured {
                    let reward = m.mean_reward.map_or("-".into(), |reward| format!("{reward:.3}"));
                    let _ = write!(text, "  {name} {} (reward {reward})", figure(m, false));
                    let of_many = m.estimates.named().skip(1).filter(|_| m.estimates.samples > 1);
                    of_many.for_each(|(name, e)| _ = write!(text, "  {name} {:.3}", e.value));
                }
            }
        }
        tell!("{text}");
        let kept = state
            .summary
            .write(&self.run)
            .and_then(|()| self.samples().evaluation(evaluated, |id| self.held_out.get(id).cloned()));
        if let Err(error) = kept {
            eprintln!("warning: evaluation {} not kept: {error:#}", evaluated.when);
        }
    }

    fn saved(&self, step: u64, path: &Path) {
        tracing::info!(step, path = %path.display(), "checkpoint saved");
    }

    fn alarm(&self, alarm: &Alarm) {
        tell!("ALARM: {alarm}");
    }

    fn waiting(&self, reason: &str) {
        let mut state = self.state();
        if state.waiting.as_deref() != Some(reason) && std::io::stderr().is_terminal() {
            eprintln!("waiting: {reason}");
        }
        state.waiting = Some(reason.to_owned());
    }
}

/// What the run is, in a few lines.
pub fn arithmetic(what: &Ingredients) -> String {
    let c = &what.config;
    let procedures = what.procedures.as_ref().map_or(String::new(), |(_, found)| found.describe() + "\n");
    let (trained, base) = (what.lora.shape().parameters(what.policy.config()), what.policy.bytes);
    format!(
        "model {} on {}: {:.1} MB of weights, {trained} in the adapter (r {})\n{}\n{procedures}step: {} prompts x {} samples = {} rollouts of up to \
         {} new tokens, {} optimiser update(s); {} steps",
        what.policy.name,
        what.policy.decoder.backend().name(),
        base as f64 / 1e6,
        what.lora.r,
        what.dataset.report,
        c.rollout.num_prompts,
        c.rollout.num_generations,
        c.rollout.samples_per_step(),
        c.rollout.max_completion_length,
        c.algo.updates_per_batch(),
        c.optim.max_steps,
    )
}

/// The number `key` of a line of `metrics.jsonl`.
pub(crate) fn number(line: &Map<String, Value>, key: &str) -> f64 {
    line.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

fn figure(measured: &Measured, graded: bool) -> String {
    let Some((value, error)) = measured.figure(graded) else { return "-".into() };
    format!("{value:.3}{}", error.map_or(String::new(), |se| format!(" ± {se:.3}")))
}

/// Characters shown of a question.
const ASKED: usize = 90;
/// Characters shown of an answer.
const ANSWERED: usize = 200;

/// A text of which the middle is left out where it has more than `most` characters: how it ends says what became of it.
fn ends(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let (head, tail) = (most / 3, most - most / 3 - " ... ".len());
    let begin: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - tail).collect();
    format!("{begin} ... {end}")
}

fn one_line(sample: &Sample) -> String {
    let reward = sample.reward.map_or("unscored".into(), |r| format!("reward {r}"));
    let part = |text: &str, most| ends(&text.replace('\n', " "), most);
    let asked = part(sample.prompt.as_deref().unwrap_or_default(), ASKED);
    format!("{asked} {}  [{reward}]", part(sample.answer(), ANSWERED))
}

/// A time, roughly.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds.round() as u64 {
        s if s < 100 => format!("{s} s"),
        s if s < 6000 => format!("{} min", s / 60),
        s => format!("{:.1} h", s as f64 / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_both_ends() {
        assert_eq!(ends("short", 5), "short");
        let cut = ends(&format!("{}ü{}", "a".repeat(50), "b".repeat(50)), 30);
        assert_eq!(cut, format!("{} ... {}", "a".repeat(10), "b".repeat(15)));
        assert_eq!(cut.chars().count(), 30);
    }
}
