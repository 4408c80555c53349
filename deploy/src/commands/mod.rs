//! One file for each command.

pub mod bench;
pub mod data;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod generate;
pub mod index;
pub mod inspect;
pub mod loss;
pub mod make_base;
pub mod nats;
pub mod quantize;
pub mod reward;
pub mod score;
pub mod search;
pub mod serve;
pub mod sft;
pub mod sop;
pub mod tokenize;
pub mod train;
pub mod up;
pub mod worker;
