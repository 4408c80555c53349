//! The link contract over the local form, and, for what holds under faults, over the faulty one.

use std::time::Duration;

use folgore_actors::{FaultPlan, LinkError, Links, LocalConfig, contract, contract::ContractConfig, faulty, local};
use folgore_protocol::Search;
use tempfile::TempDir;

fn make(dir: &TempDir, config: &ContractConfig) -> Links {
    let mut local_config = LocalConfig::new(dir.path().join(&config.run));
    local_config.queue_bound = config.queue_bound;
    local_config.redeliver_after = config.redeliver_after;
    local_config.topic_bound = config.topic_bound;
    local(&config.run, local_config)
}

#[tokio::test(start_paused = true)]
async fn the_local_form_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract::all(async |config| make(&dir, &config)).await;
}

#[tokio::test(start_paused = true)]
async fn a_plan_without_faults_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    contract::plain(&async |config| faulty(make(&dir, &config), FaultPlan::none(1))).await;
}

#[tokio::test(start_paused = true)]
async fn what_must_hold_under_faults_does() {
    for seed in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        contract::under_faults(&async |config| faulty(make(&dir, &config), FaultPlan::rough(seed))).await;
    }
}

/// The same contract on several threads and a running clock, where tasks really race.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_local_form_keeps_the_contract_on_many_threads() {
    let dir = tempfile::tempdir().unwrap();
    contract::under_faults(&async |config| make(&dir, &config)).await;
}

#[tokio::test(start_paused = true)]
async fn faults_do_happen() {
    let dir = tempfile::tempdir().unwrap();
    let config = LocalConfig::new(dir.path());
    let plan = FaultPlan { loss: 1.0, ..FaultPlan::none(5) };
    let links = faulty(local("run", config), plan);
    let echo = |request: Search| async move { Ok::<_, String>(request) };
    let _served = links.serve_typed("echo", 1, echo).await.unwrap();
    let deadline = Duration::from_secs(1);
    let search = Search { query: "Chad".into(), top_k: 1 };
    let lost = links.call::<_, Search>("echo", &search, "k", deadline).await.unwrap_err();
    assert!(matches!(lost.link(), Some(LinkError::Deadline { waited_ms: 1000, .. })), "{lost}");
    let lost = links.publish_job("work", &search, "k").await.unwrap_err();
    assert!(lost.is_transient(), "{lost}");
}

#[tokio::test(start_paused = true)]
async fn a_bound_can_be_set_for_one_queue() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = LocalConfig::new(dir.path());
    config.queue_bounds.insert("jobs".into(), 2);
    let links = local("run", config);
    for i in 0..2 {
        links.publish_job("jobs", &i, "k").await.unwrap();
    }
    let full = links.publish_job("jobs", &2, "k").await.unwrap_err();
    assert_eq!(full.link(), Some(&LinkError::Full { subject: "jobs".into(), bound: 2 }));
    for i in 0..20 {
        links.publish_job("trajectories", &i, "k").await.unwrap();
    }
}
