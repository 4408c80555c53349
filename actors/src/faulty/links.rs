//! The five links with faults.

use std::{sync::Arc, time::Duration};

use folgore_protocol::{Digest, seed};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Dice, Fate, lost};
use crate::{
    Ask, Blob, BoxFuture, Delivery, Handler, LinkError, Message, Queue, Served, Settle, State, Subscription, Topic,
    Versioned, Watch,
};

pub(super) struct FaultyAsk {
    pub(super) inner: Arc<dyn Ask>,
    pub(super) dice: Arc<Dice>,
}

impl Ask for FaultyAsk {
    fn ask<'a>(
        &'a self,
        subject: &'a str,
        request: Message,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Message, LinkError>> {
        let fate = self.dice.throw(&["ask", subject, &request.envelope.key]);
        Box::pin(async move {
            let until = Instant::now() + deadline;
            sleep(fate.delay.min(deadline)).await;
            let left = until.saturating_duration_since(Instant::now());
            if fate.lost_before || left.is_zero() {
                sleep_until(until).await;
                return Err(lost(subject, deadline));
            }
            let twin = async {
                if fate.duplicate {
                    // Its answer comes second and is thrown away, as that of a duplicate is.
                    let _ = self.inner.ask(subject, request.clone(), left).await;
                }
            };
            let (answer, ()) = tokio::join!(self.inner.ask(subject, request.clone(), left), twin);
            if fate.lost_after {
                sleep_until(until).await;
                return Err(lost(subject, deadline));
            }
            answer
        })
    }

    fn serve<'a>(
        &'a self,
        subject: &'a str,
        concurrency: usize,
        handler: Arc<dyn Handler>,
    ) -> BoxFuture<'a, Result<Served, LinkError>> {
        self.inner.serve(subject, concurrency, handler)
    }
}

pub(super) struct FaultyQueue {
    pub(super) inner: Arc<dyn Queue>,
    pub(super) dice: Arc<Dice>,
}

impl Queue for FaultyQueue {
    fn publish<'a>(&'a self, subject: &'a str, message: Message) -> BoxFuture<'a, Result<(), LinkError>> {
        let fate = self.dice.throw(&["queue", subject, &message.envelope.key]);
        Box::pin(through(fate.clone(), subject, async move {
            self.inner.publish(subject, message.clone()).await?;
            if fate.duplicate {
                // A full queue has no room for the duplicate either.
                let _ = self.inner.publish(subject, message).await;
            }
            Ok(())
        }))
    }

    fn pull<'a>(
        &'a self,
        subject: &'a str,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Delivery>, LinkError>> {
        Box::pin(async move {
            let mut deliveries = Vec::new();
            for delivery in self.inner.pull(subject, max, wait).await? {
                deliveries.extend(self.deliver(subject, delivery).await?);
            }
            seed::shuffle(self.dice.throw(&["pull", subject]).seed, &mut deliveries);
            Ok(deliveries)
        })
    }

    fn depth<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<(usize, usize), LinkError>> {
        self.inner.depth(subject)
    }

    fn system(&self) -> &'static str {
        self.inner.system()
    }
}

impl FaultyQueue {
    /// The delivery as it arrives, if it does: a lost one comes back after the redelivery time, an overtaken one soon.
    async fn deliver(&self, subject: &str, delivery: Delivery) -> Result<Option<Delivery>, LinkError> {
        let key = delivery.message.envelope.key.clone();
        let fate = self.dice.throw(&["deliver", subject, &key]);
        if fate.lost_before || fate.lost_after {
            return Ok(None);
        }
        if fate.reorder {
            delivery.settle.nak(self.dice.plan.max_delay).await?;
            return Ok(None);
        }
        let (inner, dice, subject) = (delivery.settle, self.dice.clone(), subject.to_owned());
        let settle = Box::new(FaultySettle { inner, dice, subject, key });
        Ok(Some(Delivery { message: delivery.message, attempt: delivery.attempt, sender: delivery.sender, settle }))
    }
}

struct FaultySettle {
    inner: Box<dyn Settle>,
    dice: Arc<Dice>,
    subject: String,
    key: String,
}

impl FaultySettle {
    fn send<'a>(&'a self, settling: BoxFuture<'a, Result<(), LinkError>>) -> BoxFuture<'a, Result<(), LinkError>> {
        let fate = self.dice.throw(&["settle", &self.subject, &self.key]);
        Box::pin(through(fate, &self.subject, settling))
    }
}

impl Settle for FaultySettle {
    fn ack(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        self.send(self.inner.ack())
    }

    fn nak(&self, delay: Duration) -> BoxFuture<'_, Result<(), LinkError>> {
        self.send(self.inner.nak(delay))
    }

    fn term(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        self.send(self.inner.term())
    }

    fn progress(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        self.send(self.inner.progress())
    }
}

pub(super) struct FaultyTopic {
    pub(super) inner: Arc<dyn Topic>,
    pub(super) dice: Arc<Dice>,
}

impl Topic for FaultyTopic {
    fn publish<'a>(&'a self, subject: &'a str, message: Message) -> BoxFuture<'a, Result<(), LinkError>> {
        let fate = self.dice.throw(&["topic", subject, &message.envelope.key]);
        Box::pin(async move {
            if fate.lost_before || fate.lost_after {
                return Ok(());
            }
            if fate.duplicate {
                self.inner.publish(subject, message.clone()).await?;
            }
            let held_back = if fate.reorder { self.dice.plan.max_delay } else { fate.delay };
            if held_back.is_zero() {
                return self.inner.publish(subject, message).await;
            }
            let (inner, subject) = (self.inner.clone(), subject.to_owned());
            tokio::spawn(async move {
                sleep(held_back).await;
                // A topic may lose it.
                let _ = inner.publish(&subject, message).await;
            });
            Ok(())
        })
    }

    fn subscribe<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<Box<dyn Subscription>, LinkError>> {
        self.inner.subscribe(subject)
    }
}

pub(super) struct FaultyState {
    pub(super) inner: Arc<dyn State>,
    pub(super) dice: Arc<Dice>,
}

impl State for FaultyState {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>, LinkError>> {
        Box::pin(through(self.dice.throw(&["get", key]), key, self.inner.get(key)))
    }

    fn put_if<'a>(&'a self, key: &'a str, expected: u64, value: Arc<[u8]>) -> BoxFuture<'a, Result<u64, LinkError>> {
        let fate = self.dice.throw(&["put", key]);
        Box::pin(through(fate, key, self.inner.put_if(key, expected, value)))
    }

    fn watch<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Box<dyn Watch>, LinkError>> {
        Box::pin(async move {
            let inner = self.inner.watch(key).await?;
            let late = FaultyWatch { inner, dice: self.dice.clone(), key: key.to_owned() };
            Ok(Box::new(late) as Box<dyn Watch>)
        })
    }
}

/// Tells late.
struct FaultyWatch {
    inner: Box<dyn Watch>,
    dice: Arc<Dice>,
    key: String,
}

impl Watch for FaultyWatch {
    fn next(&mut self) -> BoxFuture<'_, Option<Versioned>> {
        let delay = self.dice.throw(&["watch", &self.key]).delay;
        Box::pin(async move {
            sleep(delay).await;
            self.inner.next().await
        })
    }
}

pub(super) struct FaultyBlob {
    pub(super) inner: Arc<dyn Blob>,
    pub(super) dice: Arc<Dice>,
}

impl Blob for FaultyBlob {
    fn put(&self, bytes: Arc<[u8]>) -> BoxFuture<'_, Result<Digest, LinkError>> {
        let name = Digest::of(&bytes).hex();
        let fate = self.dice.throw(&["store", &name]);
        Box::pin(async move { through(fate, &name, self.inner.put(bytes)).await })
    }

    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Arc<[u8]>, LinkError>> {
        let fate = self.dice.throw(&["fetch", &digest.hex()]);
        Box::pin(async move { through(fate, &digest.hex(), self.inner.get(digest)).await })
    }

    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<(), LinkError>> {
        let fate = self.dice.throw(&["delete", &digest.hex()]);
        Box::pin(async move { through(fate, &digest.hex(), self.inner.delete(digest)).await })
    }
}

/// Does `work` as `fate` has it: late, not at all, or without telling.
async fn through<T>(
    fate: Fate,
    subject: &str,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    sleep(fate.delay).await;
    if fate.lost_before {
        return Err(lost(subject, fate.delay));
    }
    let done = work.await?;
    if fate.lost_after { Err(lost(subject, fate.delay)) } else { Ok(done) }
}
