//! What the user sees while a run goes on.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;
use folgore_learner::sft::{Ended, Evaluation, Listener};
use folgore_model::backend::Backend as _;
use folgore_protocol::Digest;
use serde_json::{Map, Value};

use super::{
    Prepared, SftSummary,
    prepare::{KIND, told},
    summary::Evaluated,
};
use crate::{
    console::{duration, number, say},
    run_dir::RunDir,
    summary::Hardware,
    tensorboard::TensorBoard,
};

/// Shows a run on the terminal and keeps its summary.
pub struct SftConsole {
    run: PathBuf,
    max_steps: u64,
    logging_steps: u64,
    board: Option<TensorBoard>,
    begin: Instant,
    /// The first step of this launch and when it began, for the time left.
    first: Option<(u64, Instant)>,
    summary: SftSummary,
}

impl SftConsole {
    /// For one launch of a run, which goes on from `step`.
    pub fn new(what: &Prepared, dir: &RunDir, step: u64, begin: Instant) -> Result<Self> {
        let c = &what.config;
        let mut summary = SftSummary {
            run: dir.name.clone(),
            kind: KIND.into(),
            learning_rate: c.optim.learning_rate,
            seed: c.run.seed,
            model: what.policy.name.clone(),
            model_digest: what.policy.digest.short(),
            config_digest: Digest::of(c.resolved_yaml()?.as_bytes()).short(),
            version: env!("CARGO_PKG_VERSION").into(),
            hardware: Hardware::gather(),
            attempts: 1,
            rows: told(&what.tallies[0]),
            judged: what.judged.clone(),
            ..SftSummary::default()
        };
        if step > 0 {
            summary.take_over(&dir.path, step)?;
        }
        let board = c.log.tensorboard.then(|| TensorBoard::of(&dir.path));
        if let Some(board) = &board {
            board.start(step);
        }
        Ok(Self {
            run: dir.path.clone(),
            max_steps: c.optim.max_steps,
            logging_steps: u64::from(c.log.logging_steps.max(1)),
            board,
            begin,
            first: None,
            summary,
        })
    }

    /// Writes the summary, and says what came of the run.
    pub fn end(mut self, what: &Ended, epochs: f64) -> Result<()> {
        let summary = &mut self.summary;
        summary.steps = what.standing.step;
        summary.num_tokens = what.standing.num_tokens;
        summary.epochs = epochs;
        summary.stopped_early = what.early;
        summary.complete = what.early || summary.steps >= self.max_steps;
        summary.best = what.standing.best;
        summary.wall_s += self.begin.elapsed().as_secs_f64();
        summary.write(&self.run)?;
        if what.early {
            say("stopped early: the loss on held-out rows does not get better");
        }
        let loss = |when: &str| {
            let found = summary.evaluations.iter().find(|e| e.when == when)?;
            found.numbers.get("loss")?.as_f64()
        };
        if let (Some(before), Some(after)) = (loss("before"), loss("after")) {
            say(&format!(
                "held-out loss {before:.4} -> {after:.4}, perplexity {:.3} -> {:.3}",
                before.exp(),
                after.exp()
            ));
        }
        if let Some(best) = summary.best {
            let folder = self.run.join("best");
            let place = if folder.exists() { format!(", in {}", folder.display()) } else { String::new() };
            say(&format!("best: step {}, loss {:.4}{place}", best.step, best.loss));
        }
        say(&format!("{} steps in {:.1} s; everything is in {}", summary.steps, summary.wall_s, self.run.display()));
        Ok(())
    }
}

impl Listener for SftConsole {
    fn stepped(&mut self, step: u64, line: &Map<String, Value>) {
        if let Some(board) = &self.board {
            board.line(step, line);
        }
        let spent = Duration::from_secs_f64(number(line, "step_time").max(0.0));
        let (from, since) = *self.first.get_or_insert_with(|| (step - 1, Instant::now() - spent));
        let each = since.elapsed().as_secs_f64() / (step - from) as f64;
        if step.is_multiple_of(self.logging_steps) || step == self.max_steps {
            say(&format!(
                "step {step:>4}/{}  epoch {:.2}  loss {:.4}  accuracy {:.3}  grad_norm {:.3}  {:>6.0} tokens/s  {} left",
                self.max_steps,
                number(line, "epoch"),
                number(line, "loss"),
                number(line, "mean_token_accuracy"),
                number(line, "grad_norm"),
                number(line, "perf/tokens_per_s"),
                duration(each * self.max_steps.saturating_sub(step) as f64),
            ));
        }
    }

    fn evaluated(&mut self, step: u64, evaluation: &Evaluation, best: bool) {
        let all = evaluation.all();
        let sources = evaluation.0.iter().filter(|_| evaluation.0.len() > 1);
        let sources: String = sources.map(|(source, score)| format!("  {source} {:.4}", score.loss())).collect();
        say(&format!(
            "eval step {step}  loss {:.4}  perplexity {:.3}  accuracy {:.3}{sources}{}",
            all.loss(),
            all.perplexity(),
            all.mean_token_accuracy(),
            if best { "  (best)" } else { "" },
        ));
        self.summary.evaluations.retain(|e| e.step != step);
        self.summary.evaluations.push(Evaluated::of(step, step == self.max_steps, evaluation));
        if let Err(error) = self.summary.write(&self.run) {
            eprintln!("warning: evaluation of step {step} not kept: {error:#}");
        }
    }

    fn saved(&mut self, step: u64, path: &Path) {
        tracing::info!(step, path = %path.display(), "checkpoint saved");
    }
}

/// What the run is, in a few lines.
pub fn arithmetic(what: &Prepared) -> String {
    let (c, plan) = (&what.config, &what.plan);
    let mut said = format!(
        "model {} on {}: {:.1} MB of weights, {} in the adapter (r {})\n{}\nlearnt: {}",
        what.policy.name,
        what.policy.decoder.backend().name(),
        what.policy.bytes as f64 / 1e6,
        plan.lora.shape().parameters(what.policy.config()),
        plan.lora.r,
        what.report,
        told(&what.tallies[0]),
    );
    if !what.held_out.is_empty() {
        said = format!("{said}\nheld out: {}", told(&what.tallies[1]));
    }
    format!(
        "{said}\nstep: {} rows; {} steps, which are {:.2} epochs",
        c.sft.batch_size,
        plan.max_steps,
        plan.order.epochs(plan.max_steps)
    )
}
