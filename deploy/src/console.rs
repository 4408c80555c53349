//! What the user sees while a run goes on.

use std::{
    io::IsTerminal as _,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use folgore_learner::{ask::Evaluated, learner::Witness};
use folgore_model::tokenizer::Tokenizer;
use folgore_protocol::{Batch, Trajectory, replay::EvalSummary};
use serde_json::{Map, Value};

use crate::{compose::Ingredients, policy::decode, run_dir::RunDir};

/// Shows a run on the terminal.
pub struct Console {
    tokenizer: std::sync::Arc<Tokenizer>,
    max_steps: u64,
    logging_steps: u64,
    show_every: Option<u64>,
    begin: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    first: Option<(u64, Instant)>,
    evaluations: Vec<Evaluated>,
    waiting: Option<(String, Instant)>,
}

impl Console {
    /// A console for one launch of a run.
    pub fn new(what: &Ingredients, _dir: &RunDir, _attempt: u32, begin: Instant) -> Result<Self> {
        let log = &what.config.log;
        Ok(Self {
            tokenizer: what.policy.tokenizer.clone(),
            max_steps: what.config.optim.max_steps,
            logging_steps: u64::from(log.logging_steps.max(1)),
            show_every: log.log_completions.then_some(u64::from(log.log_completions_steps.max(1))),
            begin,
            state: Mutex::default(),
        })
    }

    /// One line.
    pub fn say(&self, line: &str) {
        println!("{line}");
    }

    /// What is about to happen.
    pub fn begin(&self, what: &Ingredients) {
        println!("{}", arithmetic(what));
    }

    /// What came of it.
    pub fn end(&self, _what: &Ingredients) -> Result<()> {
        println!("{:.1} s", self.begin.elapsed().as_secs_f64());
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sample(&self, trajectory: &Trajectory) -> String {
        let ids: Vec<u32> = trajectory.rows.iter().flat_map(|r| r.ids()).collect();
        decode(&self.tokenizer, &ids)
    }
}

impl Witness for Console {
    fn stepped(&self, step: u64, line: &Map<String, Value>, batch: &Batch) {
        let mut state = self.state();
        state.waiting = None;
        let (from, since) = *state.first.get_or_insert((step - 1, self.begin));
        let per_step = since.elapsed().as_secs_f64() / (step - from) as f64;
        let left = Duration::from_secs_f64(per_step * (self.max_steps - step) as f64);
        drop(state);
        if step % self.logging_steps == 0 || step == self.max_steps {
            let number = |key: &str| line.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
            println!(
                "step {step:>4}/{}  reward {:.3}  length {:>5.1}  loss {:+.4}  grad_norm {:.3}  mismatch {:.0e}  {:>6.0} tokens/s  {:.0} s left",
                self.max_steps,
                number("reward"),
                number("completions/mean_length"),
                number("loss"),
                number("grad_norm"),
                number("mismatch/logp_abs_max"),
                number("perf/tokens_per_s"),
                left.as_secs_f64(),
            );
        }
        if self.show_every.is_some_and(|every| step % every == 0) {
            if let Some(member) = batch.groups.first().and_then(|g| g.members.first()) {
                println!("      sample  {}  -> {:?}", self.sample(member).replace('\n', "\\n"), member.outcome.total());
            }
        }
    }

    fn evaluated(&self, evaluated: &Evaluated) {
        let share = |s: &Option<EvalSummary>| s.as_ref().and_then(|s| s.share_reaching(1.0)).map_or("-".into(), |x| format!("{x:.3}"));
        println!("eval {:<8}  greedy {}  sampled {}", evaluated.when, share(&evaluated.greedy), share(&evaluated.sampled));
        self.state().evaluations.push(evaluated.clone());
    }

    fn saved(&self, step: u64, path: &Path) {
        tracing::info!(step, path = %path.display(), "checkpoint saved");
    }

    fn waiting(&self, reason: &str) {
        let mut state = self.state();
        if state.waiting.as_ref().is_none_or(|(said, _)| said != reason) && std::io::stderr().is_terminal() {
            eprintln!("waiting: {reason}");
        }
        state.waiting = Some((reason.to_owned(), Instant::now()));
    }
}

/// What the run is, in a few lines.
pub fn arithmetic(what: &Ingredients) -> String {
    let c = &what.config;
    let trained = what.lora.shape().parameters(what.policy.config());
    format!(
        "model {} on {}: {} weights train (r {})\n{}\nstep: {} prompts x {} samples = {} rollouts, up to {} new tokens; {} steps",
        what.policy.name,
        folgore_model::backend::Backend::name(&**what.policy.decoder.backend()),
        trained,
        what.lora.r,
        what.dataset.report,
        c.rollout.num_prompts,
        c.rollout.num_generations,
        c.rollout.samples_per_step(),
        c.rollout.max_completion_length,
        c.optim.max_steps,
    )
}
