//! A NATS server for one test, and connections to it.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{path::Path, time::Duration};

use folgore_actors::nats::{
    Nats, NatsConfig, connect,
    server::{LocalServer, ServerOptions, nats_server_for_tests},
};
use folgore_protocol::{
    RunName,
    names::{Names, Role},
};

/// Longer than anything here takes.
pub const LONG: Duration = Duration::from_secs(60);

/// A server with its data in `dir`.
pub fn start(dir: &Path) -> LocalServer {
    let executable = nats_server_for_tests().expect("a nats-server");
    LocalServer::start_with(executable, ServerOptions::new(dir)).expect("a running server")
}

/// How the tests connect: short times, and queues made as they are used.
pub fn config(server: &LocalServer, run: &str, name: &str) -> NatsConfig {
    let names = Names::new(&RunName::new(run).expect("a run name")).expect("names");
    let mut config = NatsConfig::new(server.url(), names, Role::Head, name).expect("a configuration");
    config.request_timeout = Duration::from_secs(2);
    config.create_queues = true;
    config
}

/// Connects as `name` of `run`.
pub async fn join(server: &LocalServer, run: &str, name: &str) -> Nats {
    connect(config(server, run, name)).await.expect("a connection")
}

/// Waits until `true_now` is.
pub async fn becomes_true(what: &str, mut true_now: impl AsyncFnMut() -> bool) {
    let until = tokio::time::Instant::now() + LONG;
    while !true_now().await {
        assert!(tokio::time::Instant::now() < until, "{what}: not in {LONG:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
