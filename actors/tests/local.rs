//! What only the local form promises, or what only it can be made to show.

use std::{sync::Arc, time::Duration};

use folgore_actors::{LinkError, Links, LocalConfig, local};
use folgore_protocol::Search;
use tempfile::TempDir;
use tokio::sync::Semaphore;

const LONG: Duration = Duration::from_secs(10);

fn links(dir: &TempDir) -> Links {
    local("run", LocalConfig::new(dir.path()))
}

fn search(n: u32) -> Search {
    Search { query: "q".into(), top_k: n }
}

/// Serves `gate`: each request waits for a permit of the result, then comes back.
async fn serve_gate(links: &Links, concurrency: usize) -> (folgore_actors::Served, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let key = gate.clone();
    let pass = move |request: Search| {
        let key = key.clone();
        async move {
            key.acquire().await.map_err(|e| e.to_string())?.forget();
            Ok::<_, String>(request)
        }
    };
    (links.serve_typed("gate", concurrency, pass).await.unwrap(), gate)
}

async fn ask(links: Links, n: u32, deadline: Duration) -> Result<u32, Option<LinkError>> {
    let reply = links.call::<_, Search>("gate", &search(n), "k", deadline).await;
    reply.map(|search| search.top_k).map_err(|e| e.link().cloned())
}

fn nobody() -> Result<u32, Option<LinkError>> {
    Err(Some(LinkError::NoResponder { subject: "gate".into() }))
}

#[tokio::test(start_paused = true)]
async fn who_waits_learns_at_once_that_the_last_server_left_and_who_is_served_gets_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let links = links(&dir);
    let (served, gate) = serve_gate(&links, 1).await;
    let begun = tokio::spawn(ask(links.clone(), 1, LONG));
    tokio::time::sleep(LONG / 100).await;
    let waits = tokio::spawn(ask(links.clone(), 2, LONG));
    tokio::time::sleep(LONG / 100).await;
    drop(served);
    assert_eq!(waits.await.unwrap(), nobody());
    gate.add_permits(1);
    assert_eq!(begun.await.unwrap(), Ok(1));
    assert_eq!(ask(links, 3, LONG).await, nobody());
}

#[tokio::test(start_paused = true)]
async fn places_are_neither_lost_nor_made_when_servers_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let links = links(&dir);
    let (first, gate_of_first) = serve_gate(&links, 2).await;
    let at_first: Vec<_> = (0..2).map(|n| tokio::spawn(ask(links.clone(), n, LONG))).collect();
    tokio::time::sleep(LONG / 100).await;
    let (_second, gate) = serve_gate(&links, 2).await;
    let at_second: Vec<_> = (2..6).map(|n| tokio::spawn(ask(links.clone(), n, LONG))).collect();
    tokio::time::sleep(LONG / 100).await;
    drop(first);
    gate_of_first.add_permits(10);
    tokio::time::sleep(LONG / 100).await;
    assert!(at_first.iter().all(|asked| asked.is_finished()), "what had begun is finished");
    assert!(at_second.iter().all(|asked| !asked.is_finished()), "who left takes nothing new");
    assert_eq!(gate_of_first.available_permits(), 8);
    gate.add_permits(4);
    for (n, asked) in at_second.into_iter().enumerate() {
        assert_eq!(asked.await.unwrap(), Ok(n as u32 + 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_gives_up_does_not_keep_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let links = links(&dir);
    let (_served, gate) = serve_gate(&links, 1).await;
    let late = Err(Some(LinkError::Deadline { subject: "gate".into(), waited_ms: 1000 }));
    for n in 0..3 {
        assert_eq!(ask(links.clone(), n, LONG / 10).await, late);
    }
    gate.add_permits(2);
    assert_eq!(ask(links, 9, LONG).await, Ok(9), "one permit for the request left behind, one for this");
    assert_eq!(gate.available_permits(), 0, "requests that nobody waits for any more were not begun");
}

/// Nobody else took it: the work is done, and doing it again would be a waste.
#[tokio::test(start_paused = true)]
async fn an_ack_after_the_redelivery_time_counts_if_nobody_else_has_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = LocalConfig::new(dir.path());
    config.redeliver_after = LONG;
    let links = local("run", config);
    for n in 0..3 {
        links.publish_job("jobs", &search(n), &format!("k{n}")).await.unwrap();
    }
    let held = links.pull_jobs::<Search>("jobs", 3, LONG).await.unwrap().jobs;
    tokio::time::sleep(2 * LONG).await;
    assert_eq!(links.queue.depth("jobs").await, Ok((3, 0)), "all three have lapsed");
    held[0].ack().await.unwrap();
    held[1].progress().await.unwrap();
    let taken = links.pull_jobs::<Search>("jobs", 3, LONG / 10).await.unwrap().jobs;
    let facts: Vec<_> = taken.iter().map(|job| (job.body.top_k, job.attempt)).collect();
    assert_eq!(facts, [(2, 2)], "only the third is to be had");
    assert_eq!(held[2].ack().await, Err(LinkError::NotHeld { subject: "jobs".into() }));
    held[1].ack().await.unwrap();
    taken[0].ack().await.unwrap();
    assert_eq!(links.queue.depth("jobs").await, Ok((0, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_lost_its_job_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = LocalConfig::new(dir.path());
    config.redeliver_after = LONG;
    let links = local("run", config);
    links.publish_job("jobs", &search(1), "k").await.unwrap();
    let held = links.pull_jobs::<Search>("jobs", 1, LONG).await.unwrap().jobs;
    let too_seldom = held[0].keep_while(3 * LONG, std::future::pending::<()>());
    let (kept, taken) = tokio::join!(too_seldom, links.pull_jobs::<Search>("jobs", 1, 2 * LONG));
    assert_eq!(taken.unwrap().jobs[0].attempt, 2);
    assert_eq!(kept, Err(LinkError::NotHeld { subject: "jobs".into() }));
}
