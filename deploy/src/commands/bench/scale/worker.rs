//! The worker process of `bench scale`: the actors of a rollout worker, with a generator that sleeps.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use folgore_actors::{Level, Links, Shutdown};
use folgore_protocol::{Role, RunName, subjects};
use folgore_reward::{PerItem, Reward};
use folgore_rollout::{
    Environments, PromptEncoder, RolloutWorker, WorkerConfig,
    fleet::{Pulse, PulseConfig},
};

use super::{
    heard::{BEGIN, Begin, TOPIC, Told},
    sleeper::{Even, Ids, Pace, Sleeper},
};
use crate::{
    cli::{ServerArgs, bench::BenchWorkerArgs},
    cluster,
    commands::worker::stop_with_parent,
    compose::House,
};

/// Runs the hidden command.
pub fn run(args: &BenchWorkerArgs) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(work(args));
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

async fn work(args: &BenchWorkerArgs) -> Result<()> {
    let shutdown = Shutdown::new();
    stop_with_parent(shutdown.clone());
    let run = RunName::new(args.run.clone()).map_err(anyhow::Error::msg)?;
    let server = ServerArgs { nats: args.nats.clone(), identity: None };
    let nats = cluster::reach(&server, &run, Role::Rollout, &args.name, None).await?;
    let begun = shutdown.unless_stopping(until_begun(&nats.links(), &args.name)).await;
    let Some(()) = begun.transpose()? else { return Ok(()) };
    let house = House::over(
        cluster::worker_links(&nats, &args.cache, args.kept, &[subjects::GENERATE, subjects::REWARD]),
        None,
    )
    .await?;
    let started = start(&house, args).await;
    let house = house.or_its_end(started).await?;
    let failed = house.shutdown();
    tokio::select! {
        () = shutdown.stopping() => {}
        () = failed.stopping() => {}
    }
    house.shutdown().request(Level::Stopping);
    house.end().await
}

/// Says that it is here, and fetches what it is told to before the run begins.
async fn until_begun(links: &Links, name: &str) -> Result<()> {
    let mut watch = links.watch_state::<Begin>(BEGIN).await?;
    links.publish_event(TOPIC, &Told::Ready { worker: name.to_owned() }, name).await?;
    while let Begin::Fetch { round, object } = watch.next().await.context("the connection is closed")??.value {
        links.blob.get(object).await?;
        links.publish_event(TOPIC, &Told::Fetched { worker: name.to_owned(), round }, name).await?;
    }
    Ok(())
}

async fn start(house: &House, args: &BenchWorkerArgs) -> Result<()> {
    let (worker, slots) = (args.name.clone(), args.slots as usize);
    let reward: Arc<dyn Reward> = Arc::new(PerItem::new(Even));
    house.score(&reward, slots).await?;
    let pace = Pace { mean: args.mean, sigma: args.sigma };
    let name = worker.clone();
    let sleeper = move || Sleeper { worker: name.clone(), slots, pace };
    house.supervisor.spawn("generator", move || Box::new(sleeper())).await?;
    let config = WorkerConfig { name: Some(worker.clone()), concurrency: slots, ..WorkerConfig::default() };
    house
        .supervisor
        .spawn("rollout-0", move || {
            let encoder: Arc<dyn PromptEncoder> = Arc::new(Ids);
            Box::new(RolloutWorker::new(config.clone(), encoder, Environments::builtin()))
        })
        .await?;
    let (role, host, build) = (Role::Rollout, cluster::host(), cluster::BUILD.to_owned());
    let pulse = PulseConfig { role, worker, host, build, slots: args.slots };
    let supervisor = house.supervisor.clone();
    house.supervisor.spawn("pulse", move || Box::new(Pulse::new(pulse.clone(), supervisor.clone()))).await?;
    Ok(())
}
