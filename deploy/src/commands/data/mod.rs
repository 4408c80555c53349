//! `folgore data`: what files of rows hold, and the same in other shapes.

mod check;
mod convert;
mod figures;
mod shown;
mod traces;

use anyhow::Result;
use folgore_config::{
    Config, DataSection,
    data::{DataFormat, OnBadRow},
};

use crate::cli::data::DataCommand;

/// A configuration is whole only with a reward; nothing is scored here.
const REWARDED: &str = "reward: [ { name: exact_match } ]\n";

/// Runs the command.
pub fn run(command: &DataCommand) -> Result<()> {
    match command {
        DataCommand::Check(args) => check::run(args),
        DataCommand::Convert(args) => convert::run(args),
        DataCommand::Traces(args) => traces::run(args),
    }
}

/// A configuration of `sources` and `settings`, in which bad rows are counted rather than refused unless `settings` say otherwise.
fn configured(sources: &[String], settings: &[String], format: Option<DataFormat>) -> Result<Config> {
    let loaded = match sources.is_empty() {
        true => folgore_config::load_text("data", REWARDED, settings),
        false => folgore_config::load(sources, settings),
    }?;
    loaded.notes.iter().for_each(|note| eprintln!("note: {note}"));
    let mut config = loaded.config;
    config.data.format = format.unwrap_or(config.data.format);
    if !settings.iter().any(|setting| setting.contains("on_bad_row")) {
        config.data.on_bad_row = OnBadRow::Skip;
    }
    Ok(config)
}

/// The section for one path, of which nothing is held out.
fn of_path(path: &str, section: &DataSection) -> DataSection {
    DataSection {
        dataset: path.to_owned(),
        sources: Vec::new(),
        eval_dataset: None,
        eval_fraction: 0.0,
        ..section.clone()
    }
}
