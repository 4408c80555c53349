//! `folgore sft`: what a run that imitates is made of, what it shows and what it leaves behind.

pub mod console;
pub mod judged;
pub mod prepare;
pub mod rows;
pub mod saved;
pub mod summary;

pub use console::SftConsole;
pub use prepare::Prepared;
pub use summary::SftSummary;
