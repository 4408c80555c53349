//! Supervised fine-tuning: learning to say what was said.
//!
//! [`encode`] turns rows into ids and says which of them are learnt.

pub mod encode;

pub use encode::{EncodeError, Encoder, Sequence, Tally};
