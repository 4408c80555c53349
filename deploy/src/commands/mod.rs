//! One file for each command.

pub mod eval;
pub mod make_base;
pub mod train;
