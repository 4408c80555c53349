//! Supervised fine-tuning: learning to say what was said.
//!
//! [`encode`] turns rows into ids and says which of them are learnt, [`order`] says which are learnt when, [`pack`] puts them into calls
//! of the model, [`step`] is one update, [`mod@evaluate`] what held-out rows say, and [`trainer`] the run: updates, evaluations, checkpoints.

pub mod best;
pub mod encode;
pub mod evaluate;
pub mod order;
pub mod pack;
pub mod rollouts;
pub mod step;
pub mod trainer;

pub use encode::{EncodeError, Encoder, Sequence, Tally};
pub use evaluate::{Evaluation, Score, evaluate};
pub use order::{Lessons, Order};
pub use step::{SftSettings, sft_step};
pub use trainer::{Ended, Listener, Sft, SftError, SftPlan, Standing};
