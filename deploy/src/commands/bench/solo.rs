//! A training in this process, as `folgore train` runs it, without its console: what other benches measure.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use folgore_learner::learner::{Standing, Witness};
use folgore_model::files::peft::AdapterFile;

use crate::{
    commands::train::parts,
    compose::{self, House, Ingredients, Place},
    run_dir::RunDir,
};

/// Trains in a folder that is gone afterwards; `witness` is told how it goes.
pub fn train(what: &Ingredients, adapter: Option<&AdapterFile>, witness: Arc<dyn Witness>) -> Result<()> {
    let folder = tempfile::tempdir().context("a folder for the run")?;
    let dir = RunDir::begin(folder.path(), Some("bench"))?;
    let (checkpoints, _) = dir.checkpoints(what.config.checkpoint.save_total_limit, |_| {})?;
    let (parts, _) = parts(what, &dir, checkpoints, None, adapter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let place = Place { record: dir.record(), blobs: dir.file("blobs") };
        let house = House::start("bench", &place, what, false).await?;
        house.learn(parts, compose::plan(what)?, Standing::default(), witness).await?;
        house.end().await
    })
}
