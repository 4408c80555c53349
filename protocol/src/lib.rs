//! What travels between Folgore's actors.
//!
//! No I/O and no async: plain values, their invariants and their encoding. A sample's life, in the order of the modules:
//! [`task`] (what to solve), [`example`] (what to imitate), [`job`] (which seat of which group), [`generate`] (tokens asked of the engine), [`trajectory`]
//! (what came back), [`score`] (what it is worth), [`answer`] (the same, as other programs say it), [`batch`] (what the learner trains on), [`policy`] (what it publishes).
//! [`replay`] is what the keeper of it all can be asked; [`fleet`] is how processes of one run meet, [`names`] what things
//! are called on a server. [`envelope`] and [`codec`] say how each of them is written,
//! [`seed`] where all randomness comes from.

pub mod answer;
pub mod batch;
pub mod codec;
pub mod envelope;
pub mod example;
pub mod fleet;
pub mod generate;
pub mod ids;
pub mod job;
pub mod names;
pub mod policy;
pub mod replay;
pub mod runlength;
pub mod score;
pub mod search;
pub mod seed;
pub mod subjects;
pub mod task;
pub mod trajectory;

pub use answer::Answer;
pub use batch::{Batch, Draws, GroupRecord};
pub use codec::{CodecError, Format, decode, encode, encode_json};
pub use envelope::{Envelope, PROTOCOL_VERSION};
pub use example::{Body, Example};
pub use fleet::{DeadLetter, Heartbeat, Hello, HelloReply, RunCard};
pub use generate::{Entropy, Generate, Generated, Measure, Measured, MeasuredRow, SamplingParams, StopReason};
pub use ids::{Digest, GroupId, PolicyId, RunName, SeatKey};
pub use job::{Given, Past, Purpose, RolloutJob};
pub use names::{Names, Role};
pub use policy::PolicyPublished;
pub use replay::{DifficultyStatus, EvalItem, EvalSummary, ExperienceStatus, ReplayReply, ReplayRequest, ReplayStatus};
pub use runlength::RunLength;
pub use score::{
    ANSWER_BYTES_MAX, Outcome, Part, Said, Scope, ScoreItem, ScoreReply, ScoreRequest, UNJUDGED_BYTES_MAX,
};
pub use search::{Passage, Passages, Search};
pub use task::{Message, Prompt, Task};
pub use trajectory::{Row, Segment, SegmentKind, Source, Trajectory};
