//! The `Generator` service: one engine on its own thread, asked through subject `generate`.
//!
//! Requests and policies reach the thread through one bounded channel, so their order is the order of arrival. A request
//! that names a policy newer than any served waits for it: the worker that heard of a policy first must not lose to the
//! generator that is still loading it. Where it says that the one before will do, it does not wait. A policy that cannot be
//! loaded is kept out and the old one stays.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use folgore_actors::{BoxFuture, Compute, Context, Links, Service, ServiceError, Shutdown, Status};
use folgore_protocol::{Envelope, Generate, Generated, Measure, Measured, PolicyId, PolicyPublished, subjects};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
};

use crate::{
    engine::{Engine, EngineConfig, EngineError, EngineStats, Model, SequenceId, TextPiece},
    published::Policies,
};

/// Makes a policy's weights from its announcement and its bytes (none: the base as it is). Checks names, shapes, finiteness
/// and the fingerprint; the error says what is wrong.
pub type PolicyLoader<A> = Arc<dyn Fn(&PolicyPublished, Option<Arc<[u8]>>) -> Result<A, String> + Send + Sync>;

/// Taken for each engine step and each learner step where both alternate: one permit, given in the order of asking.
pub type ComputeGate = Arc<Semaphore>;

/// Settings of a generator.
#[derive(Clone, Copy, Debug)]
pub struct GeneratorConfig {
    /// Limits of the engine.
    pub engine: EngineConfig,
    /// Longest that a request without a budget may take.
    pub deadline: Duration,
    /// How often the status is renewed while the engine works.
    pub status_every: Duration,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self {
            engine: EngineConfig::default(),
            deadline: Duration::from_secs(1800),
            status_every: Duration::from_secs(1),
        }
    }
}

/// The service. Made anew, with an empty cache, for every restart.
pub struct Generator<M: Model> {
    model: M,
    text: Arc<dyn TextPiece>,
    loader: PolicyLoader<M::Adapter>,
    gate: Option<ComputeGate>,
    config: GeneratorConfig,
}

impl<M: Model + 'static> Generator<M> {
    /// A generator over `model`. With a `gate`, it computes only while it holds the gate's permit.
    pub fn new(
        model: M,
        text: Arc<dyn TextPiece>,
        loader: PolicyLoader<M::Adapter>,
        gate: Option<ComputeGate>,
        config: GeneratorConfig,
    ) -> Self {
        Self { model, text, loader, gate, config }
    }

    async fn serve(self, context: Context) -> Result<(), ServiceError> {
        let Context { name, links, shutdown, status } = context;
        let config = self.config;
        let concurrency = config.engine.max_waiting.max(1);
        let (commands, inbox) = mpsc::channel(concurrency);
        let mut compute = self.start(&name, inbox, shutdown.clone(), status)?;
        let (requests, last_word) = (commands.clone(), commands.clone());
        let handler = move |envelope, request: Generate| ask(requests.clone(), envelope, request, config.deadline);
        let served = links.serve_enveloped(subjects::GENERATE, concurrency, handler).await?;
        let requests = commands.clone();
        let handler = move |envelope, request: Measure| ask(requests.clone(), envelope, request, config.deadline);
        let measured = links.serve_enveloped(subjects::MEASURE, concurrency, handler).await?;
        let end = tokio::select! {
            biased;
            () = shutdown.stopping() => None,
            ended = compute.ended() => Some(ended),
            followed = follow_policy(&links, commands) => Some(followed),
        };
        // Nobody can reach the thread any more, which is how it learns that it is to end. Requests in flight are answered
        // first; those that wait for a policy would wait for ever, because nobody tells of policies any more.
        drop((served, measured));
        // The thread may be gone already.
        let _ = last_word.send(Command::NoMorePolicies).await;
        drop(last_word);
        match end {
            None => compute.ended().await,
            Some(Ok(())) if shutdown.is_stopping() => Ok(()),
            Some(Ok(())) => Err(format!("{name}: ended without being asked to").into()),
            Some(error) => error,
        }
    }

    fn start(
        self,
        name: &str,
        inbox: mpsc::Receiver<Command>,
        shutdown: Shutdown,
        status: Status,
    ) -> Result<Compute, ServiceError> {
        let runtime = Handle::current();
        Compute::spawn(name, move || {
            Worker {
                engine: Engine::new(self.model, self.text, self.config.engine),
                loader: self.loader,
                gate: self.gate.map(|gate| (runtime, gate)),
                shutdown,
                inbox,
                replies: Vec::new(),
                parked: Vec::new(),
                parked_measures: Vec::new(),
                leaving: false,
                kept_out: None,
                meter: Meter::new(status, self.config.status_every),
            }
            .run()
        })
    }
}

impl<M: Model + 'static> Service for Generator<M> {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(self.serve(context))
    }
}

/// What the thread is told.
enum Command {
    Generate { request: Generate, reply: Reply<Generated> },
    Measure { request: Measure, reply: Reply<Measured> },
    Policy { published: Box<PolicyPublished>, bytes: Option<Arc<[u8]>> },
    NoMorePolicies,
}

type Reply<T> = oneshot::Sender<Result<T, String>>;

/// What the thread can be asked.
trait Request {
    type Answer;
    fn command(self, reply: Reply<Self::Answer>) -> Command;
}

impl Request for Generate {
    type Answer = Generated;
    fn command(self, reply: Reply<Generated>) -> Command {
        Command::Generate { request: self, reply }
    }
}

impl Request for Measure {
    type Answer = Measured;
    fn command(self, reply: Reply<Measured>) -> Command {
        Command::Measure { request: self, reply }
    }
}

/// One request, from the link to the thread and back. If the caller is gone, so is the reply's receiver: the engine sees it.
async fn ask<R: Request>(
    commands: mpsc::Sender<Command>,
    envelope: Envelope,
    request: R,
    longest: Duration,
) -> Result<R::Answer, String> {
    let budget = envelope.budget_ms.map_or(longest, Duration::from_millis).min(longest);
    let (reply, answer) = oneshot::channel();
    let work = async {
        let gone = |_| "the engine has stopped".to_owned();
        commands.send(request.command(reply)).await.map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))?
    };
    let late = |_| format!("no reply within {} ms", budget.as_millis());
    tokio::time::timeout(budget, work).await.map_err(late)?
}

/// Follows the published policy and hands each one to the thread, with its bytes.
async fn follow_policy(links: &Links, commands: mpsc::Sender<Command>) -> Result<(), ServiceError> {
    let mut policies = Policies::follow(links).await?;
    while let Some((published, bytes)) = policies.next().await {
        if commands.send(Command::Policy { published: Box::new(published), bytes }).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The thread's side.
struct Worker<M: Model> {
    engine: Engine<M>,
    loader: PolicyLoader<M::Adapter>,
    gate: Option<(Handle, ComputeGate)>,
    shutdown: Shutdown,
    inbox: mpsc::Receiver<Command>,
    replies: Vec<(SequenceId, Reply<Generated>)>,
    /// Requests for a policy that is yet to come.
    parked: Vec<(Generate, Reply<Generated>)>,
    /// The same, to be measured.
    parked_measures: Vec<(Measure, Reply<Measured>)>,
    /// True once no policy will come any more.
    leaving: bool,
    /// The last policy that could not be loaded, and why.
    kept_out: Option<(PolicyId, String)>,
    meter: Meter,
}

impl<M: Model> Worker<M> {
    /// Runs until nobody can ask any more.
    fn run(mut self) -> Result<(), ServiceError> {
        loop {
            if self.engine.is_idle() {
                self.meter.show(&self.engine.stats());
                match self.inbox.blocking_recv() {
                    Some(command) => self.take(command)?,
                    None => return Ok(()),
                }
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(command) => self.take(command)?,
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => return Ok(()),
                }
            }
            self.drop_abandoned();
            if !self.engine.is_idle() && !self.step()? {
                return Ok(());
            }
        }
    }

    fn take(&mut self, command: Command) -> Result<(), ServiceError> {
        match command {
            Command::Generate { request, reply } => self.submit(request, reply),
            Command::Measure { request, reply } => self.measure(request, reply)?,
            Command::NoMorePolicies => {
                self.leaving = true;
                self.unpark()?;
            }
            Command::Policy { published, bytes } => {
                let policy = published.policy;
                match (self.loader)(&published, bytes) {
                    Ok(adapter) => {
                        self.engine.publish(policy, adapter);
                        self.meter.status.set_field("policy", policy);
                    }
                    Err(reason) => {
                        tracing::error!(%policy, reason, "policy not usable, kept out");
                        self.meter.status.set_field("policy_kept_out", format!("{policy}: {reason}"));
                        self.kept_out = Some((policy, reason));
                    }
                }
                self.unpark()?;
            }
        }
        Ok(())
    }

    /// Measures at once: it takes one forward a row. What cannot be computed now, because the process stops, is not answered.
    fn measure(&mut self, request: Measure, reply: Reply<Measured>) -> Result<(), ServiceError> {
        let newest = self.engine.newest();
        let newer =
            |asked: PolicyId| newest.is_none_or(|newest| (asked.epoch, asked.step) > (newest.epoch, newest.step));
        if request.policy.map_or(newest.is_none(), newer) && !self.will_not_come(request.policy) {
            self.parked_measures.push((request, reply));
            return Ok(());
        }
        let Some(permit) = self.permit()? else { return Ok(()) };
        let begin = Instant::now();
        let measured = self.engine.measure(&request);
        drop(permit);
        self.meter.busy(begin, &self.engine);
        // the caller may have left
        let _ = reply.send(measured.map_err(|error| error.to_string()));
        Ok(())
    }

    fn submit(&mut self, request: Generate, reply: Reply<Generated>) {
        let policy = request.policy;
        let refusal = match self.engine.submit(request.clone()) {
            Ok(id) => return self.replies.push((id, reply)),
            Err(EngineError::NoPolicy) if !self.will_not_come(policy) => return self.parked.push((request, reply)),
            Err(EngineError::NotServed { policy, newest })
                if (policy.epoch, policy.step) > (newest.epoch, newest.step) && !self.will_not_come(Some(policy)) =>
            {
                return match request.is_content_with(&newest) {
                    true => self.submit(Generate { policy: Some(newest), ..request }, reply),
                    false => self.parked.push((request, reply)),
                };
            }
            Err(error) => match &self.kept_out {
                Some((kept_out, reason)) if Some(*kept_out) == policy => format!("{error}: {reason}"),
                _ => error.to_string(),
            },
        };
        // The caller may have left: then nobody needs the refusal.
        let _ = reply.send(Err(refusal));
    }

    /// True if `policy` will not come: it cannot be used, or the engine is about to end.
    fn will_not_come(&self, policy: Option<PolicyId>) -> bool {
        self.leaving || policy.is_some() && self.kept_out.as_ref().map(|(kept_out, _)| *kept_out) == policy
    }

    /// Submits what waited for a policy again; what still has to wait is parked again.
    fn unpark(&mut self) -> Result<(), ServiceError> {
        for (request, reply) in std::mem::take(&mut self.parked) {
            if !reply.is_closed() {
                self.submit(request, reply);
            }
        }
        for (request, reply) in std::mem::take(&mut self.parked_measures) {
            if !reply.is_closed() {
                self.measure(request, reply)?;
            }
        }
        Ok(())
    }

    /// Gives up sequences that nobody waits for any more.
    fn drop_abandoned(&mut self) {
        let engine = &mut self.engine;
        self.replies.retain(|(id, reply)| {
            let wanted = !reply.is_closed();
            if !wanted {
                engine.abort(*id);
            }
            wanted
        });
        self.parked.retain(|(_, reply)| !reply.is_closed());
        self.parked_measures.retain(|(_, reply)| !reply.is_closed());
    }

    /// Takes one step of the engine, when the gate allows it. False if the process was asked to stop meanwhile.
    fn step(&mut self) -> Result<bool, ServiceError> {
        let newest = self.engine.newest();
        let Some(permit) = self.permit()? else { return Ok(false) };
        let begin = Instant::now();
        let ended = self.engine.step();
        drop(permit);
        self.meter.busy(begin, &self.engine);
        for (id, generated) in ended {
            if let Some(at) = self.replies.iter().position(|(other, _)| *other == id) {
                let _ = self.replies.swap_remove(at).1.send(Ok(generated));
            }
        }
        if self.engine.newest() != newest {
            self.unpark()?;
        }
        Ok(true)
    }

    /// The right to compute, where that alternates with somebody else's; none if the process was asked to stop meanwhile.
    fn permit(&self) -> Result<Option<Option<OwnedSemaphorePermit>>, ServiceError> {
        let Some((runtime, gate)) = &self.gate else { return Ok(Some(None)) };
        let permit = self.shutdown.unless_stopping(gate.clone().acquire_owned());
        Ok(runtime.block_on(permit).transpose()?.map(Some))
    }
}

/// Counts what the engine does and shows it in the service's status.
struct Meter {
    status: Status,
    every: Duration,
    shown: Instant,
    busy: Duration,
}

impl Meter {
    fn new(status: Status, every: Duration) -> Self {
        Self { status, every, shown: Instant::now(), busy: Duration::ZERO }
    }

    fn busy<M: Model>(&mut self, begin: Instant, engine: &Engine<M>) {
        self.busy += begin.elapsed();
        if self.shown.elapsed() >= self.every {
            self.show(&engine.stats());
        }
    }

    fn show(&mut self, stats: &EngineStats) {
        self.shown = Instant::now();
        let seconds = self.busy.as_secs_f64();
        let per_second = |tokens: u64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        self.status.set_field("engine", stats);
        self.status.set_field("busy_s", seconds);
        self.status.set_field("tokens_per_s", per_second(stats.decode_tokens + stats.prefill_tokens));
        let computed = stats.decode_tokens + stats.prefill_tokens;
        self.status
            .set_field("tokens_per_step", if stats.steps > 0 { computed as f64 / stats.steps as f64 } else { 0.0 });
    }
}

#[cfg(test)]
#[path = "generator_tests.rs"]
mod tests;
