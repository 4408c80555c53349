//! Puts the actors of one process together: this file is the system on one page.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use folgore_actors::{ChildPolicy, Links, LocalConfig, RestartPolicy, Shutdown, Supervisor, SupervisorHandle, local};
use folgore_config::{Config, RetrieverSection};
use folgore_dataset::{Dataset, Tasks, Traces};
use folgore_learner::{
    learner::{Learner, LearnerParts, LearnerPlan, Standing, Witness},
    replay::{ReplayService, ReplaySettings, ReplaySetup, RunIdentity, TaskSource},
    step::StepSettings,
};
use folgore_model::{
    backend::Cpu,
    decoder::Recall,
    files::peft::{AdapterFile, LoraConfig},
    lora::Adapter,
};
use folgore_protocol::{Digest, Task};
use folgore_retriever::{Retriever, RetrieverWorker};
use folgore_reward::{Reward, RewardWorker, Scope};
use folgore_rollout::{
    Coordinator, CoordinatorConfig, DecoderModel, EngineConfig, Environments, EpisodeLimits, Generator,
    GeneratorConfig, ModelEncoder, PolicyLoader, PromptEncoder, RolloutWorker, TextPiece, WorkerConfig, cache_blocks,
};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::{
    agent::{self, AgentConfig},
    policy::Policy,
    retriever::{self, CORPUS},
    sop::{Introduced, PROCEDURES, SopMemory},
};

/// Names a section of the configuration.
fn digest(section: &impl Serialize) -> String {
    Digest::of(&serde_json::to_vec(section).unwrap_or_default()).short()
}

/// Requests that a reward worker beside a rollout worker or a head answers at once.
pub const REWARDS_AT_ONCE: usize = 4;
/// How often a worker says that it is at a job, within the time after which the job goes to another one.
const SIGNS_OF_LIFE: u32 = 6;

/// Settings of memory and speed, which change no number: a run may go on with others.
const FREE: [&str; 3] = ["rollout.max_concurrent_sequences", "rollout.kv_tokens", "rollout.remote_reward"];

/// Adds each setting of a section by its own name, so that a difference can be shown.
fn each_setting(identity: RunIdentity, section: &str, settings: &impl Serialize) -> RunIdentity {
    let settings = serde_json::to_value(settings).unwrap_or_default();
    let settings = settings.as_object().into_iter().flatten().map(|(key, value)| (format!("{section}.{key}"), value));
    settings
        .filter(|(name, _)| !FREE.contains(&name.as_str()))
        .fold(identity, |identity, (name, value)| identity.with(&name, value))
}

/// What a run is made of, checked and loaded.
pub struct Ingredients {
    /// The configuration.
    pub config: Config,
    /// The base and its tokenizer.
    pub policy: Arc<Policy>,
    /// Questions.
    pub dataset: Dataset,
    /// What experts said to them.
    pub traces: Traces,
    /// The rules.
    pub reward: Arc<dyn Reward>,
    /// Passages, where the policy searches.
    pub retriever: Option<Arc<dyn Retriever>>,
    /// Procedures, where prompts hold them, and what questions found.
    pub procedures: Option<(Arc<SopMemory>, Introduced)>,
    /// The adapter's configuration.
    pub lora: LoraConfig,
    /// What sampler and learner share besides the base.
    pub recall: Option<Arc<Recall<Cpu>>>,
}

impl Ingredients {
    /// What rollouts need of them.
    pub fn hands(&self) -> Hands {
        let (config, policy, reward) = (self.config.clone(), self.policy.clone(), self.reward.clone());
        let retriever = self.retriever.clone();
        Hands { config, policy, reward, retriever, scores_here: true, recall: self.recall.clone() }
    }

    /// What may not change while the run lives.
    pub fn identity(&self) -> RunIdentity {
        let c = &self.config;
        let identity = RunIdentity::new()
            .with("base model", self.policy.digest.short())
            .with("tokenizer", self.policy.tokenizer.digest().short())
            .with("dataset", self.dataset.digest.short())
            .with("run.seed", c.run.seed)
            .with("reward", digest(&c.reward))
            .with("lora", digest(&self.lora));
        let identity = match &self.retriever {
            Some(found_by) => identity.with(CORPUS, retriever::corpus(&**found_by)),
            None => identity,
        };
        let identity = match &self.procedures {
            Some((memory, _)) => identity.with(PROCEDURES, memory.fact()),
            None => identity,
        };
        let identity = match &self.traces {
            Traces::None => identity,
            traces => each_setting(identity.with("traces", traces.digest().short()), "traces", &c.traces),
        };
        let identity = match c.replay.experience.enabled {
            true => each_setting(identity, "replay.experience", &c.replay.experience),
            false => identity,
        };
        let identity = match c.data.curriculum.is_on() {
            true => each_setting(identity, "data.curriculum", &c.data.curriculum),
            false => identity,
        };
        let identity = each_setting(identity, "rollout", &c.rollout);
        each_setting(identity, "algo", &c.algo)
    }

    /// The numbers of one step.
    pub fn step_settings(&self) -> StepSettings {
        let c = &self.config;
        StepSettings {
            algo: c.algo.clone(),
            optim: c.optim.clone(),
            // of an episode: what `dr_grpo` divides by
            max_completion_length: c.rollout.most_sampled() as u32,
            temperature: c.rollout.temperature as f32,
            max_tokens_per_micro_batch: c.optim.max_tokens_per_micro_batch as usize,
            recompute: c.model.recompute(),
            lora_dropout: c.lora.lora_dropout as f32,
            seed: c.run.seed,
        }
    }
}

/// What those need that make and score trajectories.
pub struct Hands {
    /// The configuration of the run.
    pub config: Config,
    /// The base and its tokenizer.
    pub policy: Arc<Policy>,
    /// The rules.
    pub reward: Arc<dyn Reward>,
    /// Passages, where the policy searches and they are found beside the samples, and not asked of others.
    pub retriever: Option<Arc<dyn Retriever>>,
    /// Scores are computed beside the samples, and not asked of others.
    pub scores_here: bool,
    /// Where activations are kept for a learner in the same process.
    pub recall: Option<Arc<Recall<Cpu>>>,
}

/// Whether sampler and learner of one process share activations: the learner trains what was sampled, by the policy that sampled it.
pub fn shares_activations(c: &Config) -> bool {
    let sampled_alone = c.algo.mask_observations || !c.rollout.searches();
    c.model.reuse_activations && c.rollout.max_staleness == 0 && c.lora.lora_dropout == 0.0 && sampled_alone
}

/// Where they are shared.
pub fn recall(c: &Config) -> Option<Arc<Recall<Cpu>>> {
    shares_activations(c)
        .then(|| Arc::new(Recall::new(c.optim.max_tokens_per_micro_batch as usize, c.model.recompute())))
}

/// The actors that make and score trajectories and keep the record; a learner or an evaluation drives them.
pub struct House {
    /// The links of this process.
    pub links: Links,
    /// Supervision.
    pub supervisor: SupervisorHandle,
    /// Taken by whoever computes, where sampling and learning alternate.
    pub gate: Option<Arc<Semaphore>>,
}

impl House {
    /// A supervisor over `links`, without actors yet.
    pub async fn over(links: Links, gate: Option<Arc<Semaphore>>) -> Result<Self> {
        let supervisor = Supervisor::start(links.clone(), RestartPolicy::default()).await?;
        Ok(Self { links, supervisor, gate })
    }

    /// Starts everything but the learner, in one process.
    pub async fn start(run: &str, place: &Place, what: &Ingredients, force: bool) -> Result<Self> {
        let links = local(run, LocalConfig::new(&place.blobs));
        let gate = (what.config.rollout.max_staleness == 0).then(|| Arc::new(Semaphore::new(1)));
        let house = Self::over(links, gate).await?;
        let opened = async {
            house.keep_record(place, what, force).await?;
            house.make_rollouts(&what.hands(), "rollout-0").await?;
            house.coordinate(CoordinatorConfig::default()).await
        };
        let opened = opened.await;
        house.or_its_end(opened).await
    }

    /// Itself, if `opened` went well. If an actor failed before the others were there, its reason is the one to tell.
    pub async fn or_its_end(self, opened: Result<()>) -> Result<Self> {
        match opened {
            Ok(()) => Ok(self),
            Err(error) if self.shutdown().is_stopping() => Err(self.end().await.err().unwrap_or(error)),
            Err(error) => Err(error),
        }
    }

    /// Starts replay.
    pub async fn keep_record(&self, place: &Place, what: &Ingredients, force: bool) -> Result<()> {
        let vocab_size = what.policy.config().vocab_size as u32;
        let replay = ReplaySetup {
            open: ReplaySetup::file(&place.record),
            settings: ReplaySettings {
                judge_groups: judges_groups(&what.reward),
                ..ReplaySettings::from_config(&what.config, vocab_size)
            },
            identity: what.identity(),
            force,
            train: Arc::new(Questions { tasks: what.dataset.train.clone(), traces: what.traces.clone() }),
            held_out: Arc::new(Questions { tasks: what.dataset.eval.clone(), traces: Traces::None }),
        };
        self.supervisor
            .spawn_as("replay", ChildPolicy::Critical, move || Box::new(ReplayService { setup: replay.clone() }))
            .await?;
        Ok(())
    }

    /// Starts a reward worker.
    pub async fn score(&self, reward: &Arc<dyn Reward>, concurrency: usize) -> Result<()> {
        let reward = reward.clone();
        self.supervisor.spawn("reward", move || Box::new(RewardWorker::new(reward.clone(), concurrency))).await?;
        Ok(())
    }

    /// Starts a retriever worker.
    pub async fn find(&self, retriever: &Arc<dyn Retriever>, section: &RetrieverSection) -> Result<()> {
        let (retriever, bounds) = (retriever.clone(), retriever::bounds(section));
        self.supervisor.spawn("retriever", move || Box::new(RetrieverWorker::new(retriever.clone(), bounds))).await?;
        Ok(())
    }

    /// Starts a generator and a rollout worker of the name `worker`, and workers that find passages and score, unless
    /// these come from elsewhere.
    pub async fn make_rollouts(&self, hands: &Hands, worker: &str) -> Result<()> {
        let rollout = &hands.config.rollout;
        if hands.scores_here {
            self.score(&hands.reward, REWARDS_AT_ONCE).await?;
        }
        if let Some(retriever) = &hands.retriever {
            self.find(retriever, &hands.config.retriever).await?;
        }
        let (policy, recall) = (hands.policy.clone(), hands.recall.clone());
        let blocks = cache_blocks(rollout, policy.config().max_position_embeddings);
        let engine = EngineConfig::from(rollout);
        let variables = rollout.chat_template_kwargs.clone();
        let text = Arc::new(ModelEncoder::new(policy.tokenizer.clone(), policy.config(), variables));
        let (piece, loader, gate) = (text.clone(), loader(policy.clone()), self.gate.clone());
        self.supervisor
            .spawn("generator", move || {
                let model = DecoderModel::new(policy.decoder.clone(), blocks).with_recall(recall.clone());
                let config = GeneratorConfig { engine, ..GeneratorConfig::default() };
                let text: Arc<dyn TextPiece> = piece.clone();
                Box::new(Generator::new(model, text, loader.clone(), gate.clone(), config))
            })
            .await?;

        let (usual, silence) = (WorkerConfig::default(), Duration::from_secs(hands.config.cluster.ack_wait_s.into()));
        let config = WorkerConfig {
            name: Some(worker.to_owned()),
            concurrency: engine.max_concurrent_sequences,
            episode: EpisodeLimits::from(rollout),
            progress_every: usual.progress_every.min(silence / SIGNS_OF_LIFE),
            judge_groups: judges_groups(&hands.reward),
            score_deadline: Duration::from_secs_f64(hands.config.score_deadline_s()),
            model: hands.policy.name.clone(),
            show_content: hands.config.log.otel_content,
            ..usual
        };
        let environments = Environments::of(rollout);
        self.supervisor
            .spawn("rollout-0", move || {
                let encoder: Arc<dyn PromptEncoder> = text.clone();
                Box::new(RolloutWorker::new(config.clone(), encoder, environments.clone()))
            })
            .await?;
        Ok(())
    }

    /// Starts the coordinator.
    pub async fn coordinate(&self, config: CoordinatorConfig) -> Result<()> {
        self.supervisor.spawn("coordinator", move || Box::new(Coordinator::new(config))).await?;
        Ok(())
    }

    /// Starts the learner; the run ends with it.
    pub async fn learn(
        &self,
        parts: LearnerParts<Cpu>,
        plan: LearnerPlan,
        standing: Standing,
        witness: Arc<dyn Witness>,
    ) -> Result<()> {
        let learner = Learner::new(parts, plan, standing, self.gate.clone(), witness);
        self.supervisor.spawn_as("learner", ChildPolicy::RunEnds, move || Box::new(learner.clone())).await?;
        Ok(())
    }

    /// The switch that stops everything.
    pub fn shutdown(&self) -> Shutdown {
        self.supervisor.token()
    }

    /// Waits for the end of the run.
    pub async fn end(self) -> Result<()> {
        self.supervisor.wait().await.context("the run ended early")
    }
}

/// Where a run writes.
pub struct Place {
    /// `record.redb`.
    pub record: PathBuf,
    /// Folder of blobs.
    pub blobs: PathBuf,
}

/// True if completions are judged with their groups, and not one by one.
pub fn judges_groups(reward: &Arc<dyn Reward>) -> bool {
    reward.scope() == Scope::Group
}

/// What the learner needs to know of a run.
pub fn plan(what: &Ingredients) -> Result<LearnerPlan> {
    let c = &what.config;
    Ok(LearnerPlan {
        step: what.step_settings(),
        save_steps: c.checkpoint.save_steps,
        eval: c.eval.clone(),
        held_out: what.dataset.eval.len(),
        base_model: what.policy.name.clone(),
        lora: what.lora.clone(),
        beside: [(
            agent::FILE.to_owned(),
            AgentConfig::new(c, &what.policy, what.procedures.as_ref().map(|(memory, _)| memory.keep()))?.to_yaml()?,
        )]
        .into(),
        identity: what.identity().facts().clone().into_iter().collect::<BTreeMap<_, _>>(),
        min_epoch: 0,
    })
}

/// Makes the adapter of a published policy: names, shapes, finiteness and fingerprint are checked on the way.
fn loader(policy: Arc<Policy>) -> PolicyLoader<Option<Arc<Adapter<Cpu>>>> {
    Arc::new(move |published, bytes| {
        let adapter = match bytes {
            None => None,
            Some(bytes) => {
                let file = AdapterFile::from_bytes("published policy", bytes).map_err(|e| e.to_string())?;
                file.validate("published policy", policy.config()).map_err(|e| e.to_string())?;
                Some(Arc::new(policy.device_adapter(&file).map_err(|e| format!("{e:#}"))?))
            }
        };
        if !published.fingerprint.is_empty() {
            same_fingerprint(&published.fingerprint, &policy.decoder.fingerprint(adapter.as_deref()))?;
        }
        Ok(adapter)
    })
}

/// Compares what a policy says of the fixed text here with what it said where it was trained. On the same kind of machine
/// the bits are equal; another kind may round otherwise.
fn same_fingerprint(expected: &[f32], got: &[f32]) -> Result<(), String> {
    const TOLERANCE: f32 = 1e-4;
    let far = |(a, b): (&f32, &f32)| (a - b).is_nan() || (a - b).abs() > TOLERANCE;
    match expected.iter().zip(got).position(far) {
        _ if expected.len() != got.len() => {
            Err(format!("fingerprint: expected {} log-probs, got {}", expected.len(), got.len()))
        }
        None => Ok(()),
        Some(i) => Err(format!("fingerprint: expected log-prob {} of token {}, got {}", expected[i], i + 1, got[i])),
    }
}

/// The dataset's questions as replay reads them, with what experts said to them.
struct Questions {
    tasks: Tasks,
    traces: Traces,
}

impl TaskSource for Questions {
    fn len(&self) -> u64 {
        self.tasks.len()
    }

    fn task(&self, index: u64) -> Task {
        self.tasks.task(index)
    }

    fn traces(&self, index: u64) -> Vec<Vec<String>> {
        self.traces.of(index, &self.tasks.task(index))
    }
}
