//! `folgore eval`: a policy on held-out questions, on the same path as in training.

use anyhow::{Context as _, Result, bail};
use folgore_learner::ask::{Publication, evaluate, publish};
use folgore_protocol::{Digest, PolicyId, replay::EvalSummary};
use serde_json::json;

use crate::{
    cli::EvalArgs,
    commands::train::{ingredients, load_config},
    compose::{House, Place},
    telemetry,
};

/// The score from which an answer counts as right.
const CORRECT: f64 = 1.0;

/// Runs the command.
pub fn run(args: EvalArgs) -> Result<()> {
    let mut config = load_config(&args.config)?;
    config.eval.eval_items = args.items.unwrap_or(config.eval.eval_items);
    // When a run would evaluate does not matter here.
    (config.eval.before, config.eval.after, config.eval.eval_steps) = (false, false, 0);
    config.eval.sampled = args.k.unwrap_or(config.eval.sampled);
    let adapter = config.model.adapter.clone();
    let (what, adapter) = ingredients(config, adapter.as_deref(), true, |_| Ok(()))?;
    if !what.reward.judges_alone() {
        bail!("{}", crate::reward::cannot_evaluate(what.reward.as_ref()));
    }
    let bytes = adapter.map(|file| file.to_bytes());
    let policy = PolicyId { epoch: 0, step: 0, digest: Digest::of(bytes.as_deref().unwrap_or_default()) };
    let folder = tempfile::tempdir().context("a folder for the evaluation's record")?;
    let telemetry = telemetry::start("eval", "eval", "eval");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let evaluated = runtime.block_on(async {
        let place = Place { record: folder.path().join("record.redb"), blobs: folder.path().join("blobs") };
        let house = House::start("eval", &place, &what, false).await?;
        publish(&house.links, &Publication { policy, bytes: bytes.map(Into::into), fingerprint: Vec::new() }).await?;
        let (shutdown, held_out) = (house.shutdown(), what.dataset.eval.len());
        let asked = evaluate(&house.links, &shutdown, &what.config.eval, held_out, "eval", 0, policy);
        let evaluated = asked.await.map_err(anyhow::Error::from_boxed);
        shutdown.request(folgore_actors::Level::Stopping);
        house.end().await?;
        evaluated
    })?;
    telemetry::end(telemetry);
    let Some(evaluated) = evaluated else { bail!("there is nothing to evaluate: no held-out questions") };
    let k = what.config.eval.sampled;
    let greedy = evaluated.greedy.as_ref().map(share);
    let sampled = evaluated.sampled.as_ref().map(share);
    let pass = evaluated.sampled.as_ref().and_then(|s| s.tasks_reaching(CORRECT));
    let items = evaluated.greedy.iter().chain(&evaluated.sampled).map(|s| s.items.len()).max();
    if args.json {
        let pass_name = format!("pass@{k}");
        println!("{}", json!({ "items": items, "greedy": greedy, "sampled": sampled, pass_name: pass }));
        return Ok(());
    }
    let show =
        |name: &str, value: Option<f64>| println!("{name:<10} {}", value.map_or("-".into(), |v| format!("{v:.3}")));
    show("greedy", greedy);
    show("sampled", sampled);
    show(&format!("pass@{k}"), pass);
    Ok(())
}

fn share(summary: &EvalSummary) -> f64 {
    summary.share_reaching(CORRECT).unwrap_or(f64::NAN)
}
