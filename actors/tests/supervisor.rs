//! Supervision: restart, escalate, stop in order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use folgore_actors::{
    BoxFuture, ChildPolicy, ChildState, Compute, Context, Level, Links, LocalConfig, RestartPolicy, Service,
    ServiceError, Supervisor, SupervisorError, SupervisorHandle, local,
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

const LONG: Duration = Duration::from_secs(3600);

/// A service from a function.
struct Run<F>(F);

impl<F, Fut> Service for Run<F>
where
    F: FnOnce(Context) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), ServiceError>> + Send + 'static,
{
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin((self.0)(context))
    }
}

fn service<F, Fut>(run: F) -> Box<dyn Service>
where
    F: FnOnce(Context) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), ServiceError>> + Send + 'static,
{
    Box::new(Run(run))
}

fn links() -> Links {
    local("run", LocalConfig::new(std::env::temp_dir().join("folgore-unused")))
}

async fn start() -> SupervisorHandle {
    Supervisor::start(links(), RestartPolicy::default()).await.unwrap()
}

async fn until_asked(context: Context) -> Result<(), ServiceError> {
    context.status.set(json!({"name": context.name}));
    context.shutdown.stopping().await;
    Ok(())
}

async fn wait(handle: &SupervisorHandle) -> Result<(), SupervisorError> {
    timeout(LONG, handle.wait()).await.expect("the run ends")
}

#[tokio::test(start_paused = true)]
async fn a_failed_service_is_restarted_and_the_others_do_not_notice() {
    let handle = start().await;
    let runs = Arc::new(AtomicU32::new(0));
    handle.spawn("steady", || service(until_asked)).await.unwrap();
    let counted = runs.clone();
    let flaky = move || {
        let run = counted.fetch_add(1, SeqCst);
        service(move |context| async move {
            match run {
                0 => Err("no card".into()),
                1 => panic!("a planned panic"),
                _ => until_asked(context).await,
            }
        })
    };
    handle.spawn("flaky", flaky).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    let observed = handle.observe().await.unwrap();
    let facts: Vec<_> = observed.iter().map(|o| (o.name.as_str(), o.state, o.restarts)).collect();
    assert_eq!(facts, [("steady", ChildState::Running, 0), ("flaky", ChildState::Running, 2)]);
    assert_eq!(observed[1].status, json!({"name": "flaky"}));
    let taken = handle.spawn("flaky", || service(until_asked)).await;
    assert_eq!(taken, Err(SupervisorError::NameTaken { name: "flaky".into() }));
    assert_eq!(handle.shutdown(Duration::from_secs(5)).await, Ok(()));
    assert_eq!(runs.load(SeqCst), 3);
    assert!(matches!(handle.observe().await, Err(SupervisorError::Gone { .. })));
}

#[tokio::test(start_paused = true)]
async fn too_many_failures_stop_the_whole_process_in_order() {
    let handle = start().await;
    let saved = Arc::new(AtomicU32::new(0));
    let saving = saved.clone();
    let learner = move || {
        let saving = saving.clone();
        service(|context| async move {
            context.shutdown.stopping().await;
            sleep(Duration::from_secs(20)).await;
            saving.fetch_add(1, SeqCst);
            Ok(())
        })
    };
    handle.spawn_as("learner", ChildPolicy::RunEnds, learner).await.unwrap();
    handle.spawn("flaky", || service(|_| async { Err("no card".into()) })).await.unwrap();
    let started = Instant::now();
    let ended = wait(&handle).await;
    let expected = SupervisorError::Escalated { name: "flaky".into(), restarts: 5, reason: "no card".into() };
    assert_eq!(ended, Err(expected));
    assert_eq!(saved.load(SeqCst), 1, "the others had time to save");
    // Waits of 0.2 s, doubled four times, at least half of each.
    assert!(started.elapsed() >= Duration::from_secs(20) + Duration::from_millis(3100), "{:?}", started.elapsed());
    assert_eq!(handle.token().level(), Level::Stopping);
}

#[tokio::test(start_paused = true)]
async fn failures_far_apart_are_forgiven() {
    let handle = start().await;
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let seldom = move || {
        let run = counted.fetch_add(1, SeqCst);
        service(move |context| async move {
            if run == 20 {
                return until_asked(context).await;
            }
            sleep(Duration::from_secs(130)).await;
            Err("once more".into())
        })
    };
    handle.spawn("seldom", seldom).await.unwrap();
    sleep(LONG).await;
    assert_eq!(handle.observe().await.unwrap()[0].restarts, 20);
    assert_eq!(handle.shutdown(Duration::from_secs(5)).await, Ok(()));
}

/// With a running clock: the paused one would not wait for a thread that it does not know.
#[tokio::test]
async fn a_critical_service_is_not_tried_twice_and_a_dead_thread_is_noticed() {
    for policy in [ChildPolicy::Critical, ChildPolicy::RunEnds] {
        let handle = start().await;
        handle.spawn("worker", || service(until_asked)).await.unwrap();
        let learner = || {
            service(|_| async {
                let mut thread = Compute::spawn("learner-thread", || panic!("out of memory"))?;
                thread.ended().await
            })
        };
        handle.spawn_as("learner", policy, learner).await.unwrap();
        let Err(SupervisorError::Escalated { name, restarts, reason }) = wait(&handle).await else {
            panic!("it must escalate")
        };
        assert_eq!((name.as_str(), restarts), ("learner", 0));
        assert_eq!(reason, "compute thread learner-thread panicked: out of memory");
    }
}

#[tokio::test(start_paused = true)]
async fn the_run_ends_well_with_the_service_that_it_is_for() {
    let handle = start().await;
    handle.spawn("worker", || service(until_asked)).await.unwrap();
    handle.spawn("broken", || service(|_| async { Err("never mind".into()) })).await.unwrap();
    let learner = || service(|_| async { Ok(()) });
    handle.spawn_as("learner", ChildPolicy::RunEnds, learner).await.unwrap();
    assert_eq!(wait(&handle).await, Ok(()));
    let late = handle.spawn("late", || service(until_asked)).await;
    assert!(late.is_err(), "nothing starts any more");
}

#[tokio::test(start_paused = true)]
async fn the_run_ends_when_all_are_done() {
    let handle = start().await;
    for name in ["a", "b"] {
        handle.spawn(name, || service(|_| async { Ok(()) })).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(handle.observe().await.unwrap()[1].state, ChildState::Done);
    assert_eq!(wait(&handle).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_stop_in_time_is_aborted_and_named() {
    let handle = start().await;
    let dropped = Arc::new(AtomicU32::new(0));
    let counted = dropped.clone();
    let deaf = move || {
        let counted = counted.clone();
        service(move |_| async move {
            let _guard = Guard(counted);
            std::future::pending().await
        })
    };
    handle.spawn("deaf", deaf).await.unwrap();
    handle.spawn("steady", || service(until_asked)).await.unwrap();
    let started = Instant::now();
    let ended = handle.shutdown(Duration::from_secs(30)).await;
    assert_eq!(ended, Err(SupervisorError::Aborted { names: vec!["deaf".into()] }));
    assert_eq!(started.elapsed().as_secs(), 30);
    assert_eq!(dropped.load(SeqCst), 1, "its work was dropped, not left behind");
}

#[tokio::test(start_paused = true)]
async fn stop_now_does_not_wait() {
    let handle = start().await;
    handle.spawn("deaf", || service(|_| std::future::pending())).await.unwrap();
    let started = Instant::now();
    handle.token().request(Level::Now);
    assert_eq!(wait(&handle).await, Err(SupervisorError::Aborted { names: vec!["deaf".into()] }));
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_save_that_fails_is_the_outcome_and_a_worker_that_fails_then_is_not() {
    async fn fails_to_stop(context: Context) -> Result<(), ServiceError> {
        context.shutdown.stopping().await;
        Err("no space left".into())
    }
    let handle = start().await;
    handle.spawn("worker", || service(fails_to_stop)).await.unwrap();
    assert_eq!(handle.shutdown(Duration::from_secs(5)).await, Ok(()));
    let handle = start().await;
    handle.spawn_as("learner", ChildPolicy::RunEnds, || service(fails_to_stop)).await.unwrap();
    let ended = handle.shutdown(Duration::from_secs(5)).await;
    assert!(matches!(ended, Err(SupervisorError::Escalated { reason, .. }) if reason == "no space left"));
}

struct Guard(Arc<AtomicU32>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}
