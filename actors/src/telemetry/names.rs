//! Names of spans, attributes and events, one place for all of them. Names that begin with `gen_ai.` and `messaging.` are those
//! of the OpenTelemetry conventions of [`SCHEMA`], which are still in development; those that begin with `rl.` are ours.

/// The version of the conventions.
pub const SCHEMA: &str = "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev";

/// Span: the whole life of a sample, from its seat being handed out to its trajectory being taken in.
pub const SAMPLE: &str = "sample";
/// Span: the judging of a group as a whole.
pub const SCORE_GROUP: &str = "score_group";
/// Span: one optimiser step.
pub const TRAIN_STEP: &str = "train_step";

/// What is done: [`CHAT`], [`TEXT_COMPLETION`], [`INVOKE_AGENT`], [`EXECUTE_TOOL`], [`RETRIEVAL`].
pub const OPERATION: &str = "gen_ai.operation.name";
/// Operation: a turn of a conversation.
pub const CHAT: &str = "chat";
/// Operation: a continuation of plain text.
pub const TEXT_COMPLETION: &str = "text_completion";
/// Operation: an episode.
pub const INVOKE_AGENT: &str = "invoke_agent";
/// Operation: a tool that the policy called.
pub const EXECUTE_TOOL: &str = "execute_tool";
/// Operation: a search.
pub const RETRIEVAL: &str = "retrieval";

/// Who samples.
pub const PROVIDER: &str = "gen_ai.provider.name";
/// Name of the agent.
pub const AGENT: &str = "gen_ai.agent.name";
/// The seat: what all spans of one episode share.
pub const CONVERSATION: &str = "gen_ai.conversation.id";
/// The base that is asked.
pub const REQUEST_MODEL: &str = "gen_ai.request.model";
/// Most tokens to make.
pub const REQUEST_MAX_TOKENS: &str = "gen_ai.request.max_tokens";
/// Temperature.
pub const REQUEST_TEMPERATURE: &str = "gen_ai.request.temperature";
/// Nucleus.
pub const REQUEST_TOP_P: &str = "gen_ai.request.top_p";
/// Seed.
pub const REQUEST_SEED: &str = "gen_ai.request.seed";
/// Why the generation ended, a list.
pub const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
/// Tokens read.
pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
/// Tokens made.
pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
/// What was asked, only on request.
pub const INPUT_MESSAGES: &str = "gen_ai.input.messages";
/// What was answered, only on request.
pub const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";
/// Name of a tool.
pub const TOOL: &str = "gen_ai.tool.name";
/// Kind of a tool.
pub const TOOL_TYPE: &str = "gen_ai.tool.type";
/// Which call of a tool.
pub const TOOL_CALL: &str = "gen_ai.tool.call.id";
/// What is searched.
pub const DATA_SOURCE: &str = "gen_ai.data_source.id";
/// Ids and scores of what was found.
pub const DOCUMENTS: &str = "gen_ai.retrieval.documents";
/// Event: a score.
pub const EVALUATION: &str = "gen_ai.evaluation.result";
/// Name of the reward.
pub const EVALUATION_NAME: &str = "gen_ai.evaluation.name";
/// The score.
pub const SCORE: &str = "gen_ai.evaluation.score.value";
/// `scored`, `unscorable` or `error`.
pub const SCORE_LABEL: &str = "gen_ai.evaluation.score.label";
/// Why there is no score.
pub const EXPLANATION: &str = "gen_ai.evaluation.explanation";

/// Kind of bus: `nats` or `local`.
pub const MESSAGING_SYSTEM: &str = "messaging.system";
/// `send` or `process`.
pub const MESSAGING_OPERATION: &str = "messaging.operation.type";
/// The queue, without the run.
pub const DESTINATION: &str = "messaging.destination.template";
/// Idempotency key.
pub const MESSAGE_ID: &str = "messaging.message.id";
/// Bytes of the body.
pub const BODY_SIZE: &str = "messaging.message.body.size";
/// How often the message was delivered, from 1.
pub const DELIVERY_COUNT: &str = "messaging.message.delivery_count";

/// Kind of failure.
pub const ERROR_TYPE: &str = "error.type";

/// The run.
pub const RUN: &str = "rl.run";
/// What a process does in the run.
pub const ROLE: &str = "rl.role";
/// Name of a worker.
pub const WORKER: &str = "rl.worker";
/// Group of a sample, as text: its number may need all of 64 bits.
pub const GROUP: &str = "rl.group";
/// Place in the group.
pub const SEAT: &str = "rl.sample";
/// How often the place was drawn before.
pub const DRAW: &str = "rl.draw";
/// `train` or the label of an evaluation.
pub const PURPOSE: &str = "rl.purpose";
/// Step of the policy that sampled.
pub const POLICY_VERSION: &str = "rl.policy.version";
/// What became of a sample.
pub const OUTCOME: &str = "rl.outcome";
/// Its reward.
pub const REWARD: &str = "rl.reward";
/// Optimiser step.
pub const STEP: &str = "rl.step";
/// Epoch of the learner.
pub const EPOCH: &str = "rl.epoch";
/// Groups of a batch, a list.
pub const BATCH_GROUPS: &str = "rl.batch.groups";
/// Samples of a batch.
pub const BATCH_SAMPLES: &str = "rl.batch.samples";
/// Tokens that a step went through.
pub const STEP_TOKENS: &str = "rl.step.tokens";
/// Before the name of a metric of the step.
pub const METRIC_PREFIX: &str = "rl.";
