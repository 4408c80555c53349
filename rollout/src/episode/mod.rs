//! One episode: environment and policy in turns, token ids in, token ids out.
//!
//! The next context is always the ids so far, then the sampled ids, then the encoded observation. Text is never encoded
//! again: what the policy saw and said is what the learner gets.

mod given;

use std::time::Duration;

use folgore_actors::{Backoff, CallError, LinkError, Links, telemetry::names};
use folgore_config::RolloutSection;
use folgore_protocol::{
    Generate, Generated, Given, Passages, PolicyId, Prompt, Purpose, RolloutJob, Row, RunLength, Said, SamplingParams,
    Segment, SegmentKind, Source, StopReason, seed, subjects, trajectory,
};
use tokio::sync::watch;

use self::given::{Copied, TAIL, Trace};
use crate::{
    environment::{Action, Answer, Ask, Environment, Framed, Observation, Reaction},
    spans,
};

/// Text to ids and back, as the model's files say.
pub trait PromptEncoder: Send + Sync {
    /// Ids of a prompt: plain text as it stands, a conversation through the chat template with a generation prompt.
    fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, String>;
    /// Ids of untrusted text: never a special token, and nothing is added in front.
    fn text(&self, text: &str) -> Result<Vec<u32>, String>;
    /// Ids of text that the program itself wrote: added tokens count in it, and nothing is added in front.
    fn own(&self, text: &str) -> Result<Vec<u32>, String>;
    /// Ids of what an expert said as the policy, nothing added at either end: added tokens count in it, as they do where the policy
    /// says them, but for special ones, which would end a turn or begin another's. A text that holds one is refused.
    fn trace(&self, text: &str) -> Result<Vec<u32>, String>;
    /// The id that ends a turn.
    fn eos(&self) -> u32;
    /// Text of sampled ids, special tokens left out.
    fn decode(&self, ids: &[u32]) -> Result<String, String>;
    /// Number of token ids.
    fn vocab_size(&self) -> usize;
    /// Longest sequence of the model.
    fn context(&self) -> usize;
}

/// Limits of an episode.
#[derive(Clone, Copy, Debug)]
pub struct EpisodeLimits {
    /// Most tokens of a prompt; a longer one is refused by name.
    pub max_prompt_length: usize,
    /// Most tokens of one observation; the rest is cut off, but for what the environment itself wrote around it.
    pub max_observation_length: usize,
    /// Most times that the policy speaks.
    pub max_turns: u32,
    /// Longest wait for one turn.
    pub turn_deadline: Duration,
    /// Longest wait for one thing that the environment asks for.
    pub ask_deadline: Duration,
    /// How often something is tried where nobody answers.
    pub attempts: u32,
}

impl Default for EpisodeLimits {
    fn default() -> Self {
        Self {
            max_prompt_length: usize::MAX,
            max_observation_length: 1024,
            max_turns: 16,
            turn_deadline: Duration::from_secs(1800),
            ask_deadline: Duration::from_secs(60),
            attempts: 4,
        }
    }
}

impl From<&RolloutSection> for EpisodeLimits {
    fn from(section: &RolloutSection) -> Self {
        let usual = Self { max_prompt_length: section.max_prompt_length as usize, ..Self::default() };
        if !section.searches() {
            return usual;
        }
        let search = &section.search;
        Self { max_turns: search.max_turns + 1, max_observation_length: search.max_obs_length as usize, ..usual }
    }
}

/// What an episode gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Episode {
    /// Its rows; each has at least one sampled token.
    pub rows: Vec<Row>,
    /// All sampled ids, turn after turn.
    pub completion_ids: Vec<u32>,
    /// Their text, special tokens left out.
    pub completion: String,
    /// What followed the prompt, in order, where somebody besides the policy spoke; else empty.
    pub said: Vec<Said>,
    /// Why the last turn ended.
    pub stop_reason: StopReason,
}

/// Why there is no episode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EpisodeError {
    /// It can never be played, whoever tries: the task does not fit.
    #[error("{0}")]
    Impossible(String),
    /// It failed, and another try may succeed.
    #[error("{0}")]
    Failed(String),
    /// What it is to begin with cannot be used; without that it may be played.
    #[error("{0}")]
    Unusable(String),
}

use EpisodeError::{Failed, Impossible, Unusable};

/// What an episode needs of its worker.
pub struct Stage<'a> {
    /// Where to ask.
    pub links: &'a Links,
    /// Text to ids and back.
    pub encoder: &'a dyn PromptEncoder,
    /// The policy published last.
    pub published: &'a watch::Receiver<Option<PolicyId>>,
    /// Limits.
    pub limits: EpisodeLimits,
    /// Name of the model, for spans.
    pub model: &'a str,
    /// Spans show prompts and completions.
    pub show_content: bool,
}

impl Stage<'_> {
    /// Plays `job` in `environment` to its end. With `trace`, whatever of it is to be copied is what the policy says.
    pub async fn play(
        &self,
        job: &RolloutJob,
        environment: &mut dyn Environment,
        trace: Option<&Given>,
    ) -> Result<Episode, EpisodeError> {
        let mut sampling = job.sampling.clone();
        sampling.stop.extend_from_slice(environment.stop());
        let trace = match trace {
            Some(Given::Trace { turns, share, .. }) => {
                let trace = Trace::new(turns, *share, job, environment, self.encoder);
                Some(trace.map_err(|reason| Unusable(format!("task {}: its trace: {reason}", job.task.id)))?)
            }
            _ => None,
        };
        let source = if trace.is_some() { Source::Teacher } else { Source::OnPolicy };
        let (rows, stop_reason) = (Vec::new(), StopReason::Eos);
        let mut script = Script { job, sampling, rows, turns: 0, stop_reason, policy: None, source, trace };
        let mut reaction = environment.step(Action::Begin(&job.task));
        loop {
            reaction = match reaction {
                Reaction::Observe(observation) => {
                    if !script.observe(self, observation)? || script.turns >= self.limits.max_turns {
                        break;
                    }
                    let copied = script.copy(self.encoder)?;
                    let mut ids = copied.ids;
                    if copied.ended.is_none() {
                        let generated = self.turn(&mut script, ids.len() as u32).await?;
                        ids.extend(script.sampled(generated));
                    }
                    let (text, stop_reason) = (self.encoder.decode(&ids).map_err(Failed)?, script.stop_reason);
                    environment.step(Action::Turn { text: &text, ids: &ids, stop_reason })
                }
                Reaction::Ask(ask) => environment.step(Action::Answer(self.perform(ask, &script.key()).await)),
                Reaction::Done => break,
                Reaction::Fail(reason) => return Err(Impossible(format!("environment {}: {reason}", job.environment))),
                Reaction::GiveUp(reason) => return Err(Failed(format!("environment {}: {reason}", job.environment))),
            };
        }
        script.end(self.encoder)
    }

    /// One turn of the policy, of which `begun` tokens are there.
    async fn turn(&self, script: &mut Script<'_>, begun: u32) -> Result<Generated, EpisodeError> {
        let ids = script.context();
        let len = ids.len();
        let newest = *self.published.borrow();
        let most = script.sampling.max_new_tokens.saturating_sub(begun).max(1);
        let mut request = Generate {
            ids,
            sampling: SamplingParams { max_new_tokens: most, ..script.sampling.clone() },
            seed: seed::mix(&[script.job.seed, u64::from(script.turns)]),
            policy: script.pinned().or(newest),
            // To stand still while each new policy travels would cost the samples that staleness is there to save.
            at_least: newest.filter(|_| script.pinned().is_none()).map(|p| (p.epoch, script.job.min_policy_step)),
            for_training: script.job.purpose == Purpose::Train,
        };
        let mut span = spans::turn(self.model, script.job, &request);
        if self.show_content && span.is_on() {
            span.set(names::INPUT_MESSAGES, spans::question(&self.encoder.decode(&request.ids).unwrap_or_default()));
        }
        let asked = span.scope(self.generate(script, &mut request)).await;
        let checked = asked.and_then(|generated| check_generated(&generated, len).map(|()| generated).map_err(Failed));
        match &checked {
            Ok(generated) => {
                spans::turned(&mut span, generated);
                if self.show_content && span.is_on() {
                    let text = self.encoder.decode(&generated.ids).unwrap_or_default();
                    span.set(names::OUTPUT_MESSAGES, spans::answer(&text, generated));
                }
                script.policy = generated.policies.runs().last().map(|(policy, _)| *policy);
            }
            Err(error) => span.fail("generate", error),
        }
        checked
    }

    /// Asks the engine, and asks again under the newest policy where the one asked for is gone.
    async fn generate(&self, script: &Script<'_>, request: &mut Generate) -> Result<Generated, EpisodeError> {
        let mut backoff = backoff(script.job);
        let mut attempt = 1;
        loop {
            let deadline = self.limits.turn_deadline;
            let asked: Result<Generated, CallError> =
                self.links.call_when_served(subjects::GENERATE, &*request, &script.key(), deadline).await;
            match asked {
                Ok(generated) => return Ok(generated),
                Err(error) if attempt >= self.limits.attempts || !self.change_policy(script, request, &error) => {
                    return Err(generation_error(script.job, &error));
                }
                Err(_) => tokio::time::sleep(backoff.next_wait()).await,
            }
            attempt += 1;
        }
    }

    /// True if the turn should be tried again: a training episode goes on under the newest policy when its own is gone.
    fn change_policy(&self, script: &Script<'_>, request: &mut Generate, error: &CallError) -> bool {
        let refused = matches!(error.link(), Some(LinkError::Refused { .. }));
        let newest = *self.published.borrow();
        if script.job.purpose != Purpose::Train || !refused || request.policy == newest {
            return false;
        }
        request.policy = newest;
        true
    }

    /// Fetches what the environment asks for.
    async fn perform(&self, ask: Ask, key: &str) -> Answer {
        match ask {
            Ask::Search(search) => {
                let mut span = spans::tool(subjects::SEARCH, key);
                match span.scope(self.call::<_, Passages>(subjects::SEARCH, &search, key)).await {
                    Ok(mut passages) => {
                        passages.passages.truncate(search.top_k as usize);
                        Answer::Passages(passages)
                    }
                    Err(error) => {
                        span.fail("search", &error);
                        Answer::Failed(error.to_string())
                    }
                }
            }
            Ask::Tool { name, .. } => Answer::Failed(format!("tool {name:?} is not served")),
        }
    }

    /// Asks, and asks again where nobody answered.
    async fn call<Req, Rep>(&self, subject: &str, request: &Req, key: &str) -> Result<Rep, CallError>
    where
        Req: serde::Serialize,
        Rep: serde::de::DeserializeOwned,
    {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2), key.len() as u64);
        let mut attempt = 1;
        loop {
            match self.links.call(subject, request, key, self.limits.ask_deadline).await {
                Err(error) if error.is_transient() && attempt < self.limits.attempts => {
                    tracing::debug!(subject, key, %error, attempt, "asking again");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
                other => return other,
            }
            attempt += 1;
        }
    }
}

fn backoff(job: &RolloutJob) -> Backoff {
    Backoff::new(Duration::from_millis(20), Duration::from_secs(2), job.seed)
}

/// A refused evaluation will be refused for ever, because its policy does not come back; all else may pass.
fn generation_error(job: &RolloutJob, error: &CallError) -> EpisodeError {
    let refused = matches!(error.link(), Some(LinkError::Refused { .. }));
    if refused && job.purpose != Purpose::Train { Impossible(error.to_string()) } else { Failed(error.to_string()) }
}

/// Checks what an engine, possibly elsewhere, has sent.
fn check_generated(generated: &Generated, context: usize) -> Result<(), String> {
    let n = generated.ids.len();
    if n == 0 || generated.logprobs.len() != n || generated.policies.len() != n {
        return Err(format!(
            "generate: after {context} tokens expected some ids with as many log-probs and policies, got {n}, {} and {}",
            generated.logprobs.len(),
            generated.policies.len()
        ));
    }
    Ok(())
}

/// An episode being written.
struct Script<'a> {
    job: &'a RolloutJob,
    /// That of the job, with what ends a turn of the environment.
    sampling: SamplingParams,
    rows: Vec<Row>,
    turns: u32,
    stop_reason: StopReason,
    /// The policy that spoke last.
    policy: Option<PolicyId>,
    /// Where its rows come from.
    source: Source,
    /// What is left of the expert's trace that it follows.
    trace: Option<Trace>,
}

impl Script<'_> {
    /// Idempotency key of the next ask.
    fn key(&self) -> String {
        format!("{}.t{}", self.job.seat, self.turns)
    }

    /// The policy that has to speak: the one under evaluation, or the one that began the episode.
    fn pinned(&self) -> Option<PolicyId> {
        match &self.job.purpose {
            Purpose::Eval { policy, .. } => Some(*policy),
            Purpose::Train => self.policy,
        }
    }

    /// Ids of the row that is being written.
    fn context(&self) -> Vec<u32> {
        self.rows.last().map(Row::ids).unwrap_or_default()
    }

    /// Appends an observation. False if the policy cannot speak after it, because the context is full.
    fn observe(&mut self, stage: &Stage<'_>, observation: Observation) -> Result<bool, EpisodeError> {
        let starts_row = self.rows.is_empty() || matches!(observation, Observation::Prompt(_));
        let most = if starts_row { usize::MAX } else { stage.limits.max_observation_length };
        let cut = |mut ids: Vec<u32>| {
            ids.truncate(most);
            ids
        };
        let ids = match observation {
            Observation::Prompt(prompt) => stage.encoder.prompt(&prompt),
            Observation::Text(text) => stage.encoder.text(&text).map(cut),
            Observation::Framed(framed) => encode_framed(stage.encoder, &framed, most),
            Observation::Ids(ids) => Ok(cut(ids)),
        }
        .map_err(|reason| Impossible(format!("task {}: {reason}", self.job.task.id)))?;
        if starts_row {
            self.check_prompt(stage, &ids)?;
            let prompt = segment(SegmentKind::Prompt, ids);
            self.rows.push(Row { segments: vec![prompt], source: self.source });
            return Ok(true);
        }
        let row = self.rows.last_mut().ok_or_else(|| Failed("no row to append to".into()))?;
        if row.len() + ids.len() >= stage.encoder.context() {
            self.stop_reason = StopReason::Context;
            return Ok(false);
        }
        if !ids.is_empty() {
            row.segments.push(segment(SegmentKind::Observed, ids));
        }
        Ok(true)
    }

    /// A prompt must leave room for an answer.
    fn check_prompt(&self, stage: &Stage<'_>, ids: &[u32]) -> Result<(), EpisodeError> {
        let (got, id) = (ids.len(), &self.job.task.id);
        let (max, context) = (stage.limits.max_prompt_length, stage.encoder.context());
        if got == 0 {
            return Err(Impossible(format!("task {id}: the prompt is empty")));
        }
        if got > max {
            let way_out = "raise rollout.max_prompt_length or drop the row";
            return Err(Impossible(format!(
                "task {id}: the prompt has {got} tokens, at most {max} are allowed: {way_out}"
            )));
        }
        if got >= context {
            return Err(Impossible(format!(
                "task {id}: the prompt has {got} tokens, the model's context holds {context}"
            )));
        }
        Ok(())
    }

    /// Appends what an expert says now, if anything.
    fn copy(&mut self, encoder: &dyn PromptEncoder) -> Result<Copied, EpisodeError> {
        let nothing = Ok(Copied { ids: Vec::new(), ended: None });
        if self.trace.is_none() {
            return nothing;
        }
        let (id, context, before) = (&self.job.task.id, encoder.context(), self.context());
        let before = encoder.decode(&before[before.len().saturating_sub(TAIL)..]).map_err(Failed)?;
        let copied = self.trace.as_mut().map(|trace| trace.next(&before, encoder)).transpose();
        let copied = copied.map_err(|reason| Unusable(format!("task {id}: its trace: {reason}")))?.flatten();
        let Some(copied) = copied else { return nothing };
        let row = self.rows.last_mut().ok_or_else(|| Failed("no row to append to".into()))?;
        let length = row.len() + copied.ids.len();
        if length > context || length == context && copied.ended.is_none() {
            return Err(Unusable(format!(
                "task {id}: with its trace it has {length} tokens, the context holds {context}"
            )));
        }
        row.segments.push(segment(SegmentKind::Sampled, copied.ids.clone()));
        if let Some(stop_reason) = copied.ended {
            self.turns += 1;
            self.stop_reason = stop_reason;
        }
        Ok(copied)
    }

    /// Appends a turn of the policy; returns its ids.
    fn sampled(&mut self, generated: Generated) -> Vec<u32> {
        let Generated { ids, logprobs, policies, stop_reason } = generated;
        self.turns += 1;
        self.stop_reason = stop_reason;
        if let Some(row) = self.rows.last_mut() {
            row.segments.push(Segment { kind: SegmentKind::Sampled, ids: ids.clone(), logprobs, policies });
        }
        ids
    }

    fn end(mut self, encoder: &dyn PromptEncoder) -> Result<Episode, EpisodeError> {
        self.rows.retain(|row| row.sampled_len() > 0);
        if self.rows.is_empty() {
            let reason = format!("environment {} ended before the policy spoke", self.job.environment);
            return Err(Impossible(reason));
        }
        for row in &mut self.rows {
            // Nothing follows an observation after which nobody spoke.
            while row.segments.last().is_some_and(|s| s.kind != SegmentKind::Sampled) {
                row.segments.pop();
            }
        }
        Episode::of(self.rows, self.stop_reason, encoder)
    }
}

impl Episode {
    /// The episode that `rows` tell of.
    fn of(rows: Vec<Row>, stop_reason: StopReason, encoder: &dyn PromptEncoder) -> Result<Self, EpisodeError> {
        for row in &rows {
            row.validate(encoder.vocab_size() as u32).map_err(Failed)?;
        }
        let segments = rows.iter().flat_map(|row| &row.segments);
        let sampled: Vec<&Segment> = segments.filter(|s| s.kind == SegmentKind::Sampled).collect();
        let completion_ids = sampled.iter().flat_map(|s| s.ids.iter().copied()).collect();
        let completion = sampled.iter().map(|s| encoder.decode(&s.ids)).collect::<Result<_, _>>().map_err(Failed)?;
        let said = trajectory::said(&rows, |ids| encoder.decode(ids)).map_err(Failed)?;
        Ok(Self { completion_ids, completion, said, rows, stop_reason })
    }
}

/// Ids of `framed`, at most `most` of them unless its frame alone has more.
fn encode_framed(encoder: &dyn PromptEncoder, framed: &Framed, most: usize) -> Result<Vec<u32>, String> {
    let (mut ids, tail) = (encoder.own(&framed.head)?, encoder.own(&framed.tail)?);
    let room = most.saturating_sub(ids.len() + tail.len());
    ids.extend(encoder.text(&framed.body)?.into_iter().take(room));
    ids.extend(tail);
    Ok(ids)
}

fn segment(kind: SegmentKind, ids: Vec<u32>) -> Segment {
    Segment { kind, ids, logprobs: Vec::new(), policies: RunLength::default() }
}
