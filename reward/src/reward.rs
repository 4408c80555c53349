//! The contract of a reward inside this process, and the adapter for rules that judge one completion at a time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use folgore_actors::link::BoxFuture;
use folgore_config::RewardScope;
use folgore_protocol::{Outcome, Scope, ScoreItem, ScoreRequest};
use tokio::sync::Semaphore;

/// What a request must hold that is configured as `scope`.
pub(crate) fn scope_of(scope: RewardScope) -> Scope {
    match scope {
        RewardScope::Sample => Scope::Sample,
        RewardScope::Group => Scope::Group,
    }
}

/// Judges completions, in whatever way: a rule, a model, a program.
pub trait Reward: Send + Sync {
    /// Name of the reward, for parts and logs.
    fn name(&self) -> &str;

    /// What one request must hold.
    fn scope(&self) -> Scope;

    /// True if it can judge a completion by itself, too, as evaluations ask.
    fn judges_alone(&self) -> bool {
        self.scope() == Scope::Sample
    }

    /// Gives exactly one outcome for each item, in order. [`crate::host::score`] checks that, and keeps the deadline.
    fn score<'a>(&'a self, request: &'a ScoreRequest) -> BoxFuture<'a, Vec<Outcome>>;
}

/// Judges one completion: a pure function, total on whatever a policy writes.
pub trait Rule: Send + Sync + 'static {
    /// Name of the rule.
    fn name(&self) -> &str;

    /// Judges `item`.
    fn score(&self, item: &ScoreItem) -> Outcome;
}

/// Makes a [`Reward`] of a [`Rule`]: items are judged one after another on a thread that may block.
///
/// At most as many requests compute at once as the machine has cores. A request that nobody waits for any more ends after
/// the item it is at; a panic of the rule becomes [`Outcome::Error`] for its item.
pub struct PerItem {
    rule: Arc<dyn Rule>,
    threads: Arc<Semaphore>,
}

impl PerItem {
    /// Adapts `rule`.
    pub fn new(rule: impl Rule) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { rule: Arc::new(rule), threads: Arc::new(Semaphore::new(cores)) }
    }
}

impl Reward for PerItem {
    fn name(&self) -> &str {
        self.rule.name()
    }

    fn scope(&self) -> Scope {
        Scope::Sample
    }

    fn score<'a>(&'a self, request: &'a ScoreRequest) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let failed = |reason: String| vec![Outcome::Error { reason }; request.items.len()];
            let Ok(permit) = Arc::clone(&self.threads).acquire_owned().await else {
                return failed(format!("reward {}: closed", self.name()));
            };
            let abandoned = Abandoned::default();
            let (rule, items, flag) = (Arc::clone(&self.rule), request.items.clone(), Arc::clone(&abandoned.0));
            let work = tokio::task::spawn_blocking(move || {
                // Held by the computation and not by who waits: a slow rule must not pile up threads.
                let _permit = permit;
                let live = items.iter().take_while(|_| !flag.load(Ordering::Relaxed));
                live.map(|item| guarded(rule.as_ref(), item)).collect::<Vec<_>>()
            });
            work.await.unwrap_or_else(|e| failed(format!("reward {}: {e}", self.name())))
        })
    }
}

/// Tells a computation that its caller is gone.
#[derive(Default)]
struct Abandoned(Arc<AtomicBool>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn guarded(rule: &dyn Rule, item: &ScoreItem) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| rule.score(item))).unwrap_or_else(|panic| Outcome::Error {
        reason: format!("reward {}: panicked: {}", rule.name(), panic_text(panic.as_ref())),
    })
}

/// The message of a panic, if it is text.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}
