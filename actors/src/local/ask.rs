//! Request and reply in one process: each request runs as a task of its own, under a permit of the server that takes it.
//!
//! A waiting request lives in its caller's future, so there is no queue to bound here: who gives up leaves nothing behind.
//! A request that a server has begun runs to its end even when its caller has left, because a handler stopped in the
//! middle could leave its actor's state half changed.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Ask, BoxFuture, Handler, LinkError, Message, Served, compute::panic_text, lock};

/// Servers by subject.
#[derive(Default)]
pub(super) struct LocalAsk {
    pools: Pools,
    ids: AtomicU64,
}

type Pools = Arc<Mutex<HashMap<String, Pool>>>;

/// The servers of one subject; gone when the last of them leaves. There are as many permits as free places, except that
/// a caller may hold the permit of a place that has left with its server: it then finds no place and forgets the permit.
struct Pool {
    permits: Arc<Semaphore>,
    servers: Vec<Server>,
    /// Where the search for a free server begins, so that they take turns.
    turn: usize,
}

struct Server {
    id: u64,
    free: usize,
    handler: Arc<dyn Handler>,
}

impl Pool {
    fn take_place(&mut self) -> Option<(u64, Arc<dyn Handler>)> {
        let n = self.servers.len();
        let at = (0..n).map(|i| (self.turn + i) % n).find(|i| self.servers[*i].free > 0)?;
        self.turn = at + 1;
        let server = &mut self.servers[at];
        server.free -= 1;
        Some((server.id, server.handler.clone()))
    }
}

/// One place of one server, given back on drop.
struct Place {
    pools: Pools,
    subject: String,
    server: u64,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut pools = lock(&self.pools);
        let pool = pools.get_mut(&self.subject);
        let server = pool.and_then(|p| p.servers.iter_mut().find(|s| s.id == self.server));
        match (server, self.permit.take()) {
            (Some(server), _permit) => server.free += 1,
            (None, Some(permit)) => permit.forget(),
            (None, None) => {}
        }
    }
}

/// Takes a server away on drop.
struct Leave {
    pools: Pools,
    subject: String,
    server: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut pools = lock(&self.pools);
        let Some(pool) = pools.get_mut(&self.subject) else { return };
        let Some(at) = pool.servers.iter().position(|s| s.id == self.server) else { return };
        let server = pool.servers.remove(at);
        pool.permits.forget_permits(server.free);
        if pool.servers.is_empty() {
            pool.permits.close();
            pools.remove(&self.subject);
        }
    }
}

impl LocalAsk {
    /// Waits for a free place at any server of `subject`.
    async fn place(&self, subject: &str) -> Result<(Place, Arc<dyn Handler>), LinkError> {
        let nobody = || LinkError::NoResponder { subject: subject.to_owned() };
        loop {
            let permits = lock(&self.pools).get(subject).map(|p| p.permits.clone()).ok_or_else(nobody)?;
            // Closed: the last server has left; perhaps another has come.
            let Ok(permit) = permits.clone().acquire_owned().await else { continue };
            let mut pools = lock(&self.pools);
            let Some(pool) = pools.get_mut(subject).filter(|p| Arc::ptr_eq(&p.permits, &permits)) else { continue };
            let Some((server, handler)) = pool.take_place() else {
                permit.forget();
                continue;
            };
            let place = Place { pools: self.pools.clone(), subject: subject.to_owned(), server, permit: Some(permit) };
            return Ok((place, handler));
        }
    }

    async fn answer(&self, subject: &str, request: Message) -> Result<Message, LinkError> {
        let (place, handler) = self.place(subject).await?;
        let task = tokio::spawn(async move {
            let _place = place;
            handler.handle(request).await
        });
        let refused = |reason| LinkError::Refused { subject: subject.to_owned(), reason };
        match task.await {
            Ok(answer) => answer.map_err(refused),
            Err(e) => match e.try_into_panic() {
                Ok(panic) => Err(refused(format!("the handler panicked: {}", panic_text(&*panic)))),
                Err(_) => Err(LinkError::Closed { subject: subject.to_owned() }),
            },
        }
    }
}

impl Ask for LocalAsk {
    fn ask<'a>(
        &'a self,
        subject: &'a str,
        request: Message,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Message, LinkError>> {
        Box::pin(async move {
            let waited_ms = deadline.as_millis() as u64;
            let late = LinkError::Deadline { subject: subject.to_owned(), waited_ms };
            tokio::time::timeout(deadline, self.answer(subject, request)).await.unwrap_or(Err(late))
        })
    }

    fn serve<'a>(
        &'a self,
        subject: &'a str,
        concurrency: usize,
        handler: Arc<dyn Handler>,
    ) -> BoxFuture<'a, Result<Served, LinkError>> {
        Box::pin(async move {
            let free = concurrency.max(1);
            let server = self.ids.fetch_add(1, Ordering::Relaxed);
            let mut pools = lock(&self.pools);
            let pool = pools.entry(subject.to_owned()).or_insert_with(|| Pool {
                permits: Arc::new(Semaphore::new(0)),
                servers: Vec::new(),
                turn: 0,
            });
            pool.servers.push(Server { id: server, free, handler });
            pool.permits.add_permits(free);
            let leave = Leave { pools: self.pools.clone(), subject: subject.to_owned(), server };
            Ok(Served(Box::new(leave)))
        })
    }
}
