//! What the workers and replay tell while a configuration is measured, gathered in one place.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use folgore_actors::{Links, TypedEvent};
use folgore_learner::replay::ReplayEvent;
use folgore_protocol::{Digest, SeatKey, subjects};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{sync::watch, task::JoinSet, time::Instant};

/// Topic on which workers tell the head.
pub const TOPIC: &str = "bench";
/// State that lets workers begin.
pub const BEGIN: &str = "bench";

/// Lets workers begin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Begin {
    /// Not yet: first the wire is measured.
    Fetch {
        /// Which time.
        round: u32,
        /// The object to fetch.
        object: Digest,
    },
    /// Now.
    Work,
}

/// What a worker tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Told {
    /// It waits for [`Begin`].
    Ready {
        /// Its name.
        worker: String,
    },
    /// It has done [`Begin::Fetch`].
    Fetched {
        /// Its name.
        worker: String,
        /// Which time.
        round: u32,
    },
    /// It serves a policy.
    Served {
        /// Its name.
        worker: String,
        /// Step of the policy.
        step: u64,
    },
}

/// A policy on its way.
#[derive(Clone, Debug, Default)]
pub struct Journey {
    /// When it was announced.
    pub announced: Option<Instant>,
    /// How long its bytes took to the server.
    pub upload: Duration,
    /// Who serves it, or a newer one: a worker that is busy passes over those in between.
    pub served_by: BTreeSet<String>,
    /// When the last of them said so.
    pub last: Option<Instant>,
}

/// All that was heard so far.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// The learner has published the first policy.
    pub begun: bool,
    /// Workers that are ready.
    pub ready: BTreeSet<String>,
    /// Workers that have fetched, in each round.
    pub fetched: BTreeSet<(u32, String)>,
    /// Policies by step.
    pub journeys: BTreeMap<u64, Journey>,
    /// Seats closed, as far as heard.
    pub closed: u64,
    /// Seconds drawn for them.
    pub drawn: f64,
    /// Events missed.
    pub missed: u64,
}

/// Listens while it lives.
pub struct Ears {
    heard: Arc<watch::Sender<Heard>>,
    _tasks: JoinSet<()>,
}

impl Ears {
    /// Listens on `links`; `drawn` says how long a seat took.
    pub async fn open(links: &Links, drawn: impl Fn(SeatKey) -> f64 + Send + 'static) -> Result<Self> {
        let heard = Arc::new(watch::Sender::new(Heard::default()));
        let mut tasks = JoinSet::new();
        listen(links, TOPIC, &heard, &mut tasks, |heard, told: Told| heard.told(told)).await?;
        let closed = move |heard: &mut Heard, event: ReplayEvent| {
            if let ReplayEvent::SeatClosed { seat, .. } = event {
                heard.closed += 1;
                heard.drawn += drawn(seat);
            }
        };
        listen(links, subjects::EVENTS, &heard, &mut tasks, closed).await?;
        Ok(Self { heard, _tasks: tasks })
    }

    /// Where more can be noted.
    pub fn note(&self) -> Arc<watch::Sender<Heard>> {
        self.heard.clone()
    }

    /// What is heard, and what will be.
    pub fn hear(&self) -> watch::Receiver<Heard> {
        self.heard.subscribe()
    }

    /// What was heard so far.
    pub fn so_far(&self) -> Heard {
        self.heard.borrow().clone()
    }
}

impl Heard {
    fn told(&mut self, told: Told) {
        match told {
            Told::Ready { worker } => drop(self.ready.insert(worker)),
            Told::Fetched { worker, round } => drop(self.fetched.insert((round, worker))),
            Told::Served { worker, step } => {
                self.journeys.entry(step).or_default();
                for (_, journey) in self.journeys.range_mut(..=step).rev() {
                    if !journey.served_by.insert(worker.clone()) {
                        break;
                    }
                    journey.last = Some(Instant::now());
                }
            }
        }
    }
}

async fn listen<T: DeserializeOwned + 'static>(
    links: &Links,
    topic: &str,
    heard: &Arc<watch::Sender<Heard>>,
    tasks: &mut JoinSet<()>,
    take: impl Fn(&mut Heard, T) + Send + 'static,
) -> Result<()> {
    let mut events = links.subscribe_events::<T>(topic).await?;
    let heard = heard.clone();
    tasks.spawn(async move {
        while let Some(event) = events.next().await {
            heard.send_modify(|heard| match event {
                Ok(TypedEvent::Happened { body, .. }) => take(heard, body),
                Ok(TypedEvent::Missed(missed)) => heard.missed += missed,
                Err(_) => heard.missed += 1,
            });
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_serves_a_policy_serves_all_before_it() {
        let mut heard = Heard::default();
        let mut served = |worker: &str, step| {
            heard.told(Told::Served { worker: worker.to_owned(), step });
            heard.journeys.values().map(|journey| journey.served_by.len()).collect::<Vec<_>>()
        };
        assert_eq!(served("prompt", 0), [1]);
        assert_eq!(served("prompt", 1), [1, 1]);
        assert_eq!(served("prompt", 2), [1, 1, 1]);
        assert_eq!(served("late", 1), [2, 2, 1]);
        assert_eq!(served("late", 2), [2, 2, 2]);
    }
}
