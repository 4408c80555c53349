//! The run: updates, evaluations, checkpoints, the best adapter.
//!
//! Metrics of a step are durable before the checkpoint that covers them, and a resume cuts them back to it. Everything else follows from
//! the seed and the step, so a resumed run is the same run.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use folgore_model::{
    backend::Backend,
    files::{
        peft::{AdapterFile, LoraConfig},
        safetensors,
    },
};
use serde_json::{Map, Value, json};

use super::{
    best::{Best, BestFolder},
    encode::Sequence,
    evaluate::{Evaluation, evaluate},
    order::{Lessons, Order},
    step::{NotFinite, SftSettings, SftUpdate, sft_step},
};
use crate::{
    checkpoint::{CheckpointError, CheckpointMeta, CheckpointStore, MetricsLog, TrainerState, state},
    schedule::{NonFiniteGuard, Schedule},
    trainee::Trainee,
};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct SftPlan {
    /// One update.
    pub settings: SftSettings,
    /// Which positions come when.
    pub order: Order,
    /// Updates of the run.
    pub max_steps: u64,
    /// Saves after every so many steps, and after the last.
    pub save_steps: u64,
    /// Evaluates after every so many steps; 0: not in between.
    pub eval_steps: u64,
    /// Evaluates before the first step.
    pub eval_before: bool,
    /// Evaluates after the last step.
    pub eval_after: bool,
    /// Stops after so many evaluations in a row without a better loss; 0: never.
    pub patience: u32,
    /// By how much a loss has to be lower to be better.
    pub threshold: f64,
    /// Name or path of the base, for the adapter's files.
    pub base_model: String,
    /// The adapter's configuration.
    pub lora: LoraConfig,
    /// Files that each checkpoint holds besides, by name.
    pub beside: BTreeMap<String, String>,
    /// What the run is, for the manifest of a checkpoint.
    pub identity: BTreeMap<String, String>,
}

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// Steps done.
    pub step: u64,
    /// Tokens that went through the decoder.
    pub num_tokens: u64,
    /// The best evaluation.
    pub best: Option<Best>,
    /// Evaluations since then.
    pub stale: u32,
}

const NUM_TOKENS: &str = "num_tokens";
const BEST_LOSS: &str = "best_loss";
const BEST_STEP: &str = "best_step";
const STALE: &str = "evaluations_without_gain";

impl Standing {
    /// What a checkpoint says.
    pub fn of(state: &TrainerState) -> Self {
        let best = state.counters.get(BEST_LOSS).zip(state.cursors.get(BEST_STEP));
        Self {
            step: state.step,
            num_tokens: state.cursors.get(NUM_TOKENS).copied().unwrap_or(0),
            best: best.map(|(loss, step)| Best { step: *step, loss: *loss }),
            stale: state.cursors.get(STALE).copied().unwrap_or(0) as u32,
        }
    }

    fn write(&self, state: &mut TrainerState) {
        state.step = self.step;
        state.cursors.insert(NUM_TOKENS.into(), self.num_tokens);
        state.cursors.insert(STALE.into(), u64::from(self.stale));
        if let Some(best) = self.best {
            state.counters.insert(BEST_LOSS.into(), best.loss);
            state.cursors.insert(BEST_STEP.into(), best.step);
        }
    }
}

/// Who is told how the run goes.
pub trait Listener {
    /// An update is done; `line` is what `metrics.jsonl` got.
    fn stepped(&mut self, step: u64, line: &Map<String, Value>);
    /// Held-out sequences were scored under the weights of `step`; `best` if no loss was lower yet.
    fn evaluated(&mut self, step: u64, evaluation: &Evaluation, best: bool);
    /// A checkpoint is durable.
    fn saved(&mut self, step: u64, path: &Path);
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Where it stands.
    pub standing: Standing,
    /// No loss was better for as long as it had patience.
    pub early: bool,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum SftError {
    /// Updates are no numbers.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// A checkpoint cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The best adapter cannot be written.
    #[error("{path}: {source}")]
    Best {
        /// Its folder.
        path: PathBuf,
        /// What the disk said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Metrics cannot be written.
    #[error("{path}: {source}")]
    Metrics {
        /// The file.
        path: PathBuf,
        /// What the disk said.
        source: std::io::Error,
    },
    /// The state of the trainer cannot be written as JSON.
    #[error("{0}")]
    State(String),
}

/// Everything that a run owns.
pub struct Sft<B: Backend> {
    /// What trains.
    pub trainee: Trainee<B>,
    /// What is learnt.
    pub train: Box<dyn Lessons>,
    /// What is only looked at; may be empty.
    pub held_out: Vec<Sequence>,
    /// What is to be done.
    pub plan: SftPlan,
    /// Where checkpoints go.
    pub checkpoints: CheckpointStore,
    /// Where the best adapter goes; none: nowhere.
    pub best: Option<BestFolder>,
    /// Where metrics go.
    pub metrics: MetricsLog,
}

impl<B: Backend> Sft<B> {
    /// Goes on from `standing` until all steps are done, no loss gets better, or `stop` says so, which is asked between steps. What was
    /// done is saved.
    ///
    /// # Errors
    /// If the disk takes nothing more, or updates are no numbers.
    pub fn run(
        mut self,
        mut standing: Standing,
        stop: impl Fn() -> bool,
        listener: &mut dyn Listener,
    ) -> Result<Ended, SftError> {
        self.metrics(|metrics| metrics.cut_back(standing.step).map(drop))?;
        let schedule = Schedule::new(&self.plan.settings.optim, self.plan.max_steps);
        let (mut guard, mut saved) = (NonFiniteGuard::default(), standing.step);
        if standing.step == 0 && self.plan.eval_before && !self.held_out.is_empty() {
            let mut line = Map::from_iter([("step".to_owned(), json!(0))]);
            self.evaluate(&mut standing, &mut line, listener)?;
            self.metrics(|metrics| metrics.append(&line))?;
        }
        let max_steps = self.plan.max_steps;
        while standing.step < max_steps && !self.out_of_patience(&standing) && !stop() {
            let step = standing.step + 1;
            let begin = Instant::now();
            let positions = self.plan.order.positions(step);
            let batch: Vec<&Sequence> = positions.flat_map(|position| self.train.at(position)).collect();
            let update = sft_step(&mut self.trainee, &batch, step, &self.plan.settings, &schedule, &mut guard)?;
            let mut line = self.line(&mut standing, step, &update, begin.elapsed());
            standing.step = step;
            let due = self.plan.eval_steps > 0 && step.is_multiple_of(self.plan.eval_steps);
            if !self.held_out.is_empty() && (due || step == max_steps && self.plan.eval_after) {
                self.evaluate(&mut standing, &mut line, listener)?;
            }
            self.metrics(|metrics| metrics.append(&line))?;
            listener.stepped(step, &line);
            if step.is_multiple_of(self.plan.save_steps) || step == max_steps {
                self.save(&standing, listener)?;
                saved = step;
            }
        }
        if saved < standing.step {
            self.save(&standing, listener)?;
        }
        let early = standing.step < max_steps && self.out_of_patience(&standing);
        Ok(Ended { standing, early })
    }

    fn out_of_patience(&self, standing: &Standing) -> bool {
        self.plan.patience > 0 && standing.stale >= self.plan.patience
    }

    fn metrics(&mut self, write: impl FnOnce(&mut MetricsLog) -> std::io::Result<()>) -> Result<(), SftError> {
        write(&mut self.metrics).map_err(|source| SftError::Metrics { path: self.metrics.path().to_owned(), source })
    }

    /// One line of `metrics.jsonl`. What depends on the clock is under `step_time` and `perf/`.
    fn line(&self, standing: &mut Standing, step: u64, update: &SftUpdate, took: Duration) -> Map<String, Value> {
        standing.num_tokens += update.tokens;
        let mut line = Map::new();
        line.insert("step".into(), json!(step));
        line.insert("epoch".into(), json!(self.plan.order.epochs(step)));
        update.scores.metrics("", &mut line);
        line.insert("grad_norm".into(), json!(update.grad_norm));
        line.insert("learning_rate".into(), json!(update.learning_rate));
        line.insert("num_tokens".into(), json!(standing.num_tokens));
        line.insert("tokens_trained".into(), json!(update.tokens));
        line.insert("tokens_learnt".into(), json!(update.scores.all().tokens));
        if !update.applied {
            line.insert("skipped".into(), json!(1));
        }
        line.insert("step_time".into(), json!(took.as_secs_f64()));
        line.insert("perf/tokens_per_s".into(), json!(update.tokens as f64 / took.as_secs_f64().max(1e-9)));
        line
    }

    /// Scores the held-out sequences and keeps the adapter if none was better.
    fn evaluate(
        &mut self,
        standing: &mut Standing,
        line: &mut Map<String, Value>,
        listener: &mut dyn Listener,
    ) -> Result<(), SftError> {
        let evaluation = evaluate(&self.trainee, &self.held_out, self.plan.settings.max_tokens_per_micro_batch);
        evaluation.metrics("eval_", line);
        let loss = evaluation.all().loss();
        let better = standing.best.is_none_or(|best| loss < best.loss - self.plan.threshold);
        if better && loss.is_finite() {
            let best = Best { step: standing.step, loss };
            (standing.best, standing.stale) = (Some(best), 0);
            if let Some(folder) = &self.best {
                let put = folder.put(&self.adapter(), &self.plan.beside, best);
                put.map_err(|source| SftError::Best { path: folder.path().to_owned(), source })?;
            }
        } else {
            standing.stale += 1;
        }
        listener.evaluated(standing.step, &evaluation, better);
        Ok(())
    }

    fn adapter(&self) -> AdapterFile {
        AdapterFile {
            config: self.plan.lora.clone(),
            base_model: Some(self.plan.base_model.clone()),
            tensors: self.trainee.values(),
        }
    }

    fn save(&mut self, standing: &Standing, listener: &mut dyn Listener) -> Result<(), SftError> {
        self.metrics(|metrics| metrics.sync())?;
        let file = self.adapter();
        let identity = self.plan.identity.clone();
        let meta = CheckpointMeta { step: standing.step, identity, ..CheckpointMeta::default() };
        let mut trainer = TrainerState {
            schedule: json!({ "updates": self.trainee.updates() }),
            optim: self.plan.settings.optim.optim,
            ..TrainerState::default()
        };
        standing.write(&mut trainer);
        let trainer = trainer.to_bytes().map_err(SftError::State)?;
        let mut files = vec![(state::TRAINER, trainer.as_slice())];
        files.extend(self.plan.beside.iter().map(|(name, text)| (name.as_str(), text.as_bytes())));
        let trainee = &self.trainee;
        let path = self.checkpoints.save_with(
            &meta,
            &files,
            |folder| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
                file.write(folder)?;
                drop(file);
                let optimizer = folder.join(state::OPTIMIZER);
                std::fs::create_dir_all(optimizer.parent().unwrap_or(folder))?;
                Ok(safetensors::write(&optimizer, &trainee.moments())?)
            },
        )?;
        self.checkpoints.prune()?;
        listener.saved(standing.step, &path);
        Ok(())
    }
}
