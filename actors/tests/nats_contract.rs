//! The link contract over a real NATS server, and, for what holds under faults, with faults on top.

mod with_server;

use folgore_actors::{
    FaultPlan, Links, contract,
    contract::ContractConfig,
    faulty,
    nats::{Limits, admin, connect, server::LocalServer},
};

async fn links(server: &LocalServer, series: &str, config: &ContractConfig) -> Links {
    let run = format!("{series}-{}", config.run);
    let mut nats = with_server::config(server, &run, "tester");
    nats.queue_bound = config.queue_bound;
    nats.topic_bound = config.topic_bound;
    nats.ack_wait_jobs = config.redeliver_after;
    let nats = connect(nats).await.expect("a connection");
    admin::ensure(&nats, &Limits::within(1 << 27)).await.expect("the stores of the run");
    nats.links()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nats_form_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_server::start(dir.path());
    contract::all(async |config| links(&server, "plain", &config).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_hold_under_faults_does() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_server::start(dir.path());
    for seed in 0..2 {
        let series = format!("rough{seed}");
        contract::under_faults(&async |config| faulty(links(&server, &series, &config).await, FaultPlan::rough(seed)))
            .await;
    }
}
