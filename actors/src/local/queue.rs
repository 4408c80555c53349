//! Bounded work queues in memory: at least once, by attempt, with redelivery of what nobody settled.
//!
//! No task runs in the background: what is due comes back when somebody pulls, and a waiting puller sleeps until the
//! next message is due.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::LocalConfig;
use crate::{BoxFuture, Delivery, LinkError, Message, Queue, Settle, lock};

/// Queues by subject.
pub(super) struct LocalQueue {
    config: LocalConfig,
    subjects: Mutex<HashMap<String, Arc<Subject>>>,
}

/// One queue.
struct Subject {
    name: String,
    bound: usize,
    redeliver_after: Duration,
    items: Mutex<Items>,
    changed: Notify,
}

#[derive(Default)]
struct Items {
    next_id: u64,
    all: HashMap<u64, Item>,
    /// Deliverable now, in order.
    ready: VecDeque<u64>,
    /// When held or delayed items become deliverable.
    due: BTreeSet<(Instant, u64)>,
}

struct Item {
    message: Message,
    /// Deliveries so far.
    attempt: u32,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// In `ready`; nobody may settle it.
    Waiting,
    /// Handed out; in `due` until settled.
    Held(Instant),
    /// In `ready` because its holder was silent for too long; the holder may still settle it until somebody else gets it.
    Lapsed,
    /// Handed back; in `due`.
    Delayed(Instant),
}

impl Items {
    fn push(&mut self, message: Message) {
        let id = self.next_id;
        self.next_id += 1;
        self.all.insert(id, Item { message, attempt: 0, phase: Phase::Waiting });
        self.ready.push_back(id);
    }

    /// Moves what is due by `now` to `ready`.
    fn reclaim(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            if let Some(item) = self.all.get_mut(&id) {
                item.phase = if matches!(item.phase, Phase::Held(_)) { Phase::Lapsed } else { Phase::Waiting };
                self.ready.push_back(id);
            }
        }
    }

    /// Hands out up to `max` ready items, held until `until`.
    fn take(&mut self, max: usize, until: Instant) -> Vec<(u64, u32, Message)> {
        let ids: Vec<u64> = self.ready.drain(..max.min(self.ready.len())).collect();
        let mut taken = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(item) = self.all.get_mut(&id) {
                item.attempt += 1;
                item.phase = Phase::Held(until);
                self.due.insert((until, id));
                taken.push((id, item.attempt, item.message.clone()));
            }
        }
        taken
    }

    /// Takes item `id` out of its place if delivery number `attempt` of it is still the caller's to settle.
    fn release(&mut self, id: u64, attempt: u32) -> bool {
        let Some(item) = self.all.get(&id).filter(|item| item.attempt == attempt) else { return false };
        match item.phase {
            Phase::Held(at) => self.due.remove(&(at, id)),
            Phase::Lapsed => {
                self.ready.retain(|other| *other != id);
                true
            }
            Phase::Waiting | Phase::Delayed(_) => false,
        }
    }

    fn put(&mut self, id: u64, phase: Phase) {
        if let Phase::Held(at) | Phase::Delayed(at) = phase {
            self.due.insert((at, id));
        }
        if let Some(item) = self.all.get_mut(&id) {
            item.phase = phase;
        }
    }
}

impl Subject {
    fn publish(&self, message: Message) -> Result<(), LinkError> {
        let mut items = lock(&self.items);
        if items.all.len() >= self.bound {
            return Err(LinkError::Full { subject: self.name.clone(), bound: self.bound });
        }
        items.push(message);
        drop(items);
        self.changed.notify_waiters();
        Ok(())
    }

    /// What can be had now, or when to look again.
    fn try_pull(self: &Arc<Self>, max: usize) -> Result<Vec<Delivery>, Option<Instant>> {
        let now = Instant::now();
        let mut items = lock(&self.items);
        items.reclaim(now);
        let taken = items.take(max, now + self.redeliver_after);
        if taken.is_empty() {
            return Err(items.due.first().map(|(at, _)| *at));
        }
        drop(items);
        self.changed.notify_waiters();
        let deliver = |(id, attempt, message)| Delivery {
            message,
            attempt,
            sender: None,
            settle: Box::new(Held { subject: self.clone(), id, attempt }) as Box<dyn Settle>,
        };
        Ok(taken.into_iter().map(deliver).collect())
    }

    async fn pull(self: &Arc<Self>, max: usize, wait: Duration) -> Vec<Delivery> {
        let deadline = Instant::now() + wait;
        loop {
            // Registered before looking, so that no message can slip in between.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let look_again = match self.try_pull(max) {
                Ok(deliveries) => return deliveries,
                Err(due) => due.map_or(deadline, |at| at.min(deadline)),
            };
            let now = Instant::now();
            if now >= deadline {
                return Vec::new();
            }
            // Either way there is something to look at, or the time is over.
            let _ = timeout_at(look_again, changed).await;
        }
    }

    fn depth(&self) -> (usize, usize) {
        let mut items = lock(&self.items);
        items.reclaim(Instant::now());
        let held = items.all.values().filter(|item| matches!(item.phase, Phase::Held(_))).count();
        (items.all.len() - held, held)
    }
}

/// One delivery of one item.
struct Held {
    subject: Arc<Subject>,
    id: u64,
    attempt: u32,
}

impl Held {
    fn settle(&self, settle: impl FnOnce(&mut Items, u64)) -> Result<(), LinkError> {
        let mut items = lock(&self.subject.items);
        if !items.release(self.id, self.attempt) {
            return Err(LinkError::NotHeld { subject: self.subject.name.clone() });
        }
        settle(&mut items, self.id);
        drop(items);
        self.subject.changed.notify_waiters();
        Ok(())
    }

    fn forget(&self) -> Result<(), LinkError> {
        self.settle(|items, id| {
            items.all.remove(&id);
        })
    }
}

impl Settle for Held {
    fn ack(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async { self.forget() })
    }

    fn nak(&self, delay: Duration) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async move { self.settle(|items, id| items.put(id, Phase::Delayed(Instant::now() + delay))) })
    }

    fn term(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async { self.forget() })
    }

    fn progress(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        let after = self.subject.redeliver_after;
        Box::pin(async move { self.settle(|items, id| items.put(id, Phase::Held(Instant::now() + after))) })
    }
}

impl LocalQueue {
    pub(super) fn new(config: &LocalConfig) -> Self {
        Self { config: config.clone(), subjects: Mutex::default() }
    }

    fn subject(&self, name: &str) -> Arc<Subject> {
        let mut subjects = lock(&self.subjects);
        let make = || Subject {
            name: name.to_owned(),
            bound: self.config.queue_bounds.get(name).copied().unwrap_or(self.config.queue_bound),
            redeliver_after: self.config.redeliver_after,
            items: Mutex::default(),
            changed: Notify::new(),
        };
        subjects.entry(name.to_owned()).or_insert_with(|| Arc::new(make())).clone()
    }
}

impl Queue for LocalQueue {
    fn publish<'a>(&'a self, subject: &'a str, message: Message) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move { self.subject(subject).publish(message) })
    }

    fn pull<'a>(
        &'a self,
        subject: &'a str,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Delivery>, LinkError>> {
        Box::pin(async move { Ok(self.subject(subject).pull(max, wait).await) })
    }

    fn depth<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<(usize, usize), LinkError>> {
        Box::pin(async move { Ok(self.subject(subject).depth()) })
    }
}
