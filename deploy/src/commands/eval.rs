//! `folgore eval`: a policy on held-out questions, on the same path as in training.

use anyhow::{Context as _, Result, bail};
use folgore_learner::{
    ask::{Publication, evaluate, publish},
    evaluation::{CORRECT, Estimate, Evaluated},
};
use folgore_protocol::{Digest, PolicyId};
use serde_json::{Map, Value, json};

use crate::{
    cli::EvalArgs,
    commands::train::{ingredients, load_config},
    compose::{House, Place},
    telemetry,
};

/// Runs the command.
pub fn run(args: EvalArgs) -> Result<()> {
    let mut config = load_config(&args.config)?;
    config.eval.eval_items = args.items.unwrap_or(config.eval.eval_items);
    // When a run would evaluate does not matter here.
    (config.eval.before, config.eval.after, config.eval.eval_steps) = (false, false, 0);
    let most = args.k.iter().copied().max();
    config.eval.sampled = args.samples.or(most).unwrap_or(config.eval.sampled);
    if most.is_some() {
        config.eval.k = args.k;
    }
    if let Some(k) = config.eval.k.iter().find(|k| !(1..=config.eval.sampled).contains(*k)) {
        bail!("eval.k: expected 1 to the {} samples of each question, got {k}", config.eval.sampled);
    }
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
    let rows = rows(&evaluated);
    if args.json {
        let items = evaluated.greedy.iter().chain(&evaluated.sampled).map(|s| s.items.len()).max();
        let mut object = object(items, &rows);
        let all = evaluated.sampled.as_ref().map(|s| s.share_reaching(CORRECT));
        object.insert("sampled".into(), json!(all.flatten()));
        println!("{}", Value::from(object));
        return Ok(());
    }
    println!("{:<10} {:>6}   95 % interval  questions", "", "share");
    for (name, estimate) in &rows {
        match estimate {
            Some(e) => println!("{name:<10} {:>6.3}  {:.3} to {:.3}  {:>9}", e.value, e.low, e.high, e.questions),
            None => println!("{name:<10} {:>6}", "-"),
        }
    }
    Ok(())
}

/// What is shown, in order.
fn rows(evaluated: &Evaluated) -> Vec<(String, Option<Estimate>)> {
    let [(_, greedy), (_, sampled)] = evaluated.measured();
    let mut rows = Vec::new();
    if let Some(measured) = greedy {
        rows.push(("greedy".to_owned(), measured.estimates.avg));
    }
    if let Some(measured) = sampled {
        match measured.estimates.named().next() {
            None => rows.push((format!("avg@{}", measured.estimates.samples), None)),
            Some(_) => rows.extend(measured.estimates.named().map(|(name, e)| (name, Some(e)))),
        }
    }
    rows
}

/// One object: each figure under its name, and its interval and questions under `ci95` and `questions`.
fn object(items: Option<usize>, rows: &[(String, Option<Estimate>)]) -> Map<String, Value> {
    let map = |of: fn(&Estimate) -> Value| -> Map<String, Value> {
        rows.iter().map(|(name, e)| (name.clone(), e.as_ref().map_or(Value::Null, of))).collect()
    };
    let mut object = map(|e| json!(e.value));
    object.insert("items".into(), json!(items));
    object.insert("ci95".into(), map(|e| json!([e.low, e.high])).into());
    object.insert("questions".into(), map(|e| json!(e.questions)).into());
    object
}
