//! `folgore train`: from a configuration to a trained adapter, all actors in this process.

use std::{fs, path::PathBuf, sync::Arc, time::Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use folgore_actors::Level;
use folgore_config::{Config, Loaded, LogSection, Purpose, load_for};
use folgore_dataset::Traces;
use folgore_learner::{
    checkpoint::{Checkpoint, CheckpointStore, MetricsLog, TrainerState, state},
    learner::{FIRST_FREE_GROUP, LearnerParts, LearnerPlan, Standing, Witness},
    record::Record,
    trainee::Trainee,
};
use folgore_model::{
    backend::Cpu,
    files::{peft::AdapterFile, safetensors},
};
use folgore_protocol::Role;
use folgore_reward::Reward;

use crate::{
    base::{self, Base},
    capacity::{self, Memory},
    cli::{ConfigArgs, ServerArgs, TrainArgs},
    cluster::Head,
    compose::{self, House, Ingredients, Place},
    console::{Console, arithmetic},
    metrics::{self, Collector, Door, Metrics},
    policy::{Policy, fresh_lora},
    prompts, rows,
    run_dir::{self, RunDir},
    samples::prompt_text,
    sft,
    signals::Signals,
    sop::{self, SopMemory},
    summary::Summary,
    telemetry,
    tensorboard::TensorBoard,
    witnesses::Witnesses,
};

/// The preset of a run without arguments.
const DEFAULT: &str = "demo";
/// Exit code after Ctrl-C, as shells know it: 128 and the number of the signal.
pub const INTERRUPTED: i32 = 130;

/// How a training ended, when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done.
    Done,
    /// The user stopped it; what was done is saved.
    Interrupted,
}

/// Runs the command.
pub fn run(args: TrainArgs) -> Result<()> {
    match train(args)? {
        Ended::Done => Ok(()),
        Ended::Interrupted => std::process::exit(INTERRUPTED),
    }
}

/// Trains, in this process alone or as the head of a run whose workers are elsewhere.
pub fn train(args: TrainArgs) -> Result<Ended> {
    let begin = Instant::now();
    let Some(args) = settled(args)? else { return Ok(Ended::Done) };
    let config = told(configuration(&args)?);
    if args.dry_run {
        return dry_run(config, &args).map(|()| Ended::Done);
    }
    let door = door(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let signals = Signals::heed(&runtime)?;
    let Launch { dir, checkpoints, newest, what, adapter } = match &args.resume {
        Some(name) => Launch::again(config, name, &args)?,
        None => Launch::first(config, &args)?,
    };
    log_to(&dir.next_attempt()?)?;
    let mut telemetry = telemetry::start(&dir.name, Role::Head.name(), "head");
    let (parts, standing) = parts(&what, &dir, checkpoints, newest.as_ref(), adapter.as_ref())?;
    let resumed = args.resume.is_some().then_some(standing.step);
    let console = Arc::new(Console::new(&what, &dir, resumed, begin)?);
    let collector = Arc::new(Collector::new(&dir.name, Role::Head.name()));
    let shown = metrics::send(&mut telemetry, &collector) || door.is_some();
    let witnesses = witnesses(&what.config, &dir, &console, &collector);
    console.say(&arithmetic(&what));
    if let Some(door) = &door {
        console.say(&format!("metrics: {}", door.url()?));
    }
    if resumed.is_none() {
        fs::write(dir.file(run_dir::CONFIG), what.config.resolved_yaml()?)?;
        fs::write(dir.file("command.txt"), command_line())?;
    }

    let outcome = runtime.block_on(async {
        let started = start(&args, &dir, &what, &console).await?;
        let teller = console.clone();
        signals.stop(started.house.shutdown(), move |line| teller.say(line));
        let Started { house, epoch } = started;
        collector.epoch(epoch);
        if shown {
            Metrics::start(&collector, &house.supervisor, door.as_ref()).await?;
        }
        let plan = LearnerPlan { min_epoch: epoch, ..compose::plan(&what)? };
        let learning = house.learn(parts, plan, standing, Arc::new(witnesses)).await;
        if learning.is_err() {
            house.shutdown().request(Level::Stopping);
        }
        // an actor that failed before the learner was there has the reason to tell
        house.end().await.and(learning)
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    telemetry::end(telemetry);
    outcome.map_err(|error| with_way_out(error, &dir.name))?;
    console.end()?;
    if signals.came() {
        console.say(&format!("stopped; go on with --resume {}", dir.name));
        return Ok(Ended::Interrupted);
    }
    Ok(Ended::Done)
}

/// What was typed, as a shell takes it.
pub(super) fn command_line() -> String {
    let command: Vec<String> = std::env::args().collect();
    // no argument holds a zero byte
    shlex::try_join(command.iter().map(String::as_str)).unwrap_or_else(|_| command.join(" ")) + "\n"
}

/// Those who are told how the run goes.
fn witnesses(config: &Config, dir: &RunDir, console: &Arc<Console>, collector: &Arc<Collector>) -> Witnesses {
    let mut all: Vec<Arc<dyn Witness>> = vec![console.clone(), collector.clone()];
    if config.log.tensorboard {
        all.push(Arc::new(TensorBoard::of(&dir.path)));
    }
    Witnesses(all)
}

/// Where the numbers of the run can be read, if that is wanted.
fn door(config: &Config) -> Result<Option<Door>> {
    let LogSection { metrics_port, metrics_address, .. } = config.log;
    metrics_port.map(|port| Door::open(metrics_address, port)).transpose()
}

/// What `--continue` comes to: a first launch, a resume, or nothing, because the run is done.
fn settled(mut args: TrainArgs) -> Result<Option<TrainArgs>> {
    if !args.carry_on {
        return Ok(Some(args));
    }
    let run = configuration(&args)?.config.run;
    let name = run.name.context("--continue: expected the run's name, by --run-name or run.name")?;
    if !run_dir::is_there(&run.output_dir, &name) {
        return Ok(Some(args));
    }
    if Summary::read(&run.output_dir.join(&name))?.is_some_and(|summary| summary.complete) {
        println!("run {name} is done; --resume {name} with a larger max_steps trains it further");
        return Ok(None);
    }
    args.config.given.retain(|given| given.contains('='));
    (args.output_dir, args.resume) = (Some(run.output_dir), Some(name));
    Ok(Some(args))
}

/// The actors of a run but its learner, and the epoch that the head took (0 where nobody else could be the head).
struct Started {
    house: House,
    epoch: u32,
}

async fn start(args: &TrainArgs, dir: &RunDir, what: &Ingredients, console: &Arc<Console>) -> Result<Started> {
    let place = Place { record: dir.record(), blobs: dir.file("blobs") };
    let Some(nats) = &args.nats else {
        let house = House::start(&dir.name, &place, what, args.force).await?;
        return Ok(Started { house, epoch: 0 });
    };
    let server = ServerArgs { nats: nats.clone(), identity: args.identity.clone() };
    let recorded = if place.record.exists() { Record::open(&place.record)?.epoch()? } else { 0 };
    let fresh = args.resume.is_none();
    let head = Head::take(&server, &place, &dir.name, what, fresh, recorded, |line| console.say(line)).await?;
    let epoch = head.epoch;
    console.say(&format!(
        "head of run {} at {nats}; workers join with `folgore worker --nats {nats} --run {}`",
        dir.name, dir.name
    ));
    let teller = console.clone();
    let house = head.start(&place, what, args.force, Arc::new(move |reason| teller.held_up(reason))).await?;
    Ok(Started { house, epoch })
}

/// What is loaded and found before the first step.
struct Launch {
    dir: RunDir,
    checkpoints: CheckpointStore,
    newest: Option<Checkpoint>,
    what: Ingredients,
    adapter: Option<AdapterFile>,
}

impl Launch {
    /// A new run. What cannot be loaded is found before the run has a folder.
    fn first(config: Config, args: &TrainArgs) -> Result<Self> {
        let (output_dir, name, keep) =
            (config.run.output_dir.clone(), config.run.name.clone(), config.checkpoint.save_total_limit);
        run_dir::expect_free(&output_dir, name.as_deref())?;
        let from = config.model.adapter.clone();
        let (what, adapter) = ingredients(config, from.as_deref(), args.nats.is_none(), |memory| fits(memory, args))?;
        let dir = RunDir::begin(&output_dir, name.as_deref())?;
        let (checkpoints, _) = dir.checkpoints(keep, |line| eprintln!("{line}"))?;
        Ok(Self { dir, checkpoints, newest: None, what, adapter })
    }

    /// The run `name` again, from its newest checkpoint, or from where it began if there is none.
    fn again(config: Config, name: &str, args: &TrainArgs) -> Result<Self> {
        let dir = RunDir::resume(&config.run.output_dir, name)?;
        let (checkpoints, newest) = dir.checkpoints(config.checkpoint.save_total_limit, |line| eprintln!("{line}"))?;
        let kind = newest.as_ref().and_then(|checkpoint| checkpoint.manifest.identity.get("kind"));
        if kind.is_some_and(|kind| kind == sft::prepare::KIND) {
            bail!(
                "{name} imitates: go on with `folgore sft --resume {name}`, or begin a run with --adapter {}",
                dir.file("best").display()
            );
        }
        let from = newest.as_ref().map(|checkpoint| checkpoint.path.clone()).or_else(|| config.model.adapter.clone());
        let (what, adapter) = ingredients(config, from.as_deref(), args.nats.is_none(), |memory| fits(memory, args))?;
        Ok(Self { dir, checkpoints, newest, what, adapter })
    }
}

/// Says what to do about a full disk. Errors of services arrive as text, so the system's numbers are looked for: no space, over
/// the quota, file too large.
pub(super) fn with_way_out(error: anyhow::Error, run: &str) -> anyhow::Error {
    let said = format!("{error:#}");
    let full = [28, 122, 27].iter().any(|code| said.contains(&format!("(os error {code})")));
    match full {
        true if said.contains("free some space") => anyhow!("{said}; then go on with --resume {run}"),
        true => anyhow!("{said}: free some space, then go on with --resume {run}"),
        false => error,
    }
}

/// The configuration that the arguments ask for; on resume, the one that the run began with.
fn configuration(args: &TrainArgs) -> Result<Loaded> {
    let mut given = args.config.clone();
    let setting = |key: &str, value: String| format!("{key}={value}");
    given.given.extend(args.run_name.iter().map(|v| setting("run.name", format!("{v:?}"))));
    given
        .given
        .extend(args.output_dir.iter().map(|v| setting("run.output_dir", format!("{:?}", v.display().to_string()))));
    given.given.extend(args.metrics_port.iter().map(|v| setting("log.metrics_port", v.to_string())));
    given
        .given
        .extend(args.metrics_address.iter().map(|v| setting("log.metrics_address", format!("{:?}", v.to_string()))));
    given.given.extend(args.max_steps.iter().map(|v| setting("optim.max_steps", v.to_string())));
    match &args.resume {
        None => read_config(&given),
        Some(name) => {
            let output_dir = args.output_dir.clone().unwrap_or_else(|| Config::default().run.output_dir);
            let path = run_dir::find(&output_dir, name)?.join(run_dir::CONFIG);
            if given.given.iter().any(|g| !g.contains('=')) {
                bail!("--resume goes on with the run's own config.yaml: give key=value settings only");
            }
            given.given.insert(0, path.display().to_string());
            read_config(&given)
        }
    }
}

/// The folder that holds the run's folder, and the name that the run will have, or has.
pub fn place(args: &TrainArgs) -> Result<(PathBuf, String)> {
    let run = configuration(args)?.config.run;
    let name = match &args.resume {
        Some(name) => run_dir::name_of(&run_dir::find(&run.output_dir, name)?)?,
        None => run.name.unwrap_or_else(|| run_dir::free_name(&run.output_dir)),
    };
    Ok((run.output_dir, name))
}

/// Reads sources and settings; notes and warnings go to standard error.
pub fn load_config(args: &ConfigArgs) -> Result<Config> {
    read_config(args).map(told)
}

/// The configuration, with its notes and warnings told.
pub(super) fn told(loaded: Loaded) -> Config {
    loaded.notes.iter().for_each(|note| eprintln!("note: {note}"));
    loaded.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    loaded.config
}

fn read_config(args: &ConfigArgs) -> Result<Loaded> {
    read_config_for(Purpose::Train, args)
}

/// The configuration of `args`, checked for `purpose`, with what its user should be told.
pub(super) fn read_config_for(purpose: Purpose, args: &ConfigArgs) -> Result<Loaded> {
    let (mut settings, mut sources): (Vec<String>, Vec<String>) =
        args.given.iter().cloned().partition(|g| g.contains('='));
    if sources.is_empty() && purpose == Purpose::Train {
        sources.push(DEFAULT.into());
    }
    if args.model.is_some() {
        // the revision is that of the name that --model takes the place of, unless it is set here too
        settings.insert(0, "model.model_revision=null".into());
    }
    settings.extend(args.seed.iter().map(|v| format!("run.seed={v}")));
    settings.extend(args.model.iter().map(|v| format!("model.model_name_or_path={v:?}")));
    settings.extend(args.adapter.iter().map(|v| format!("model.adapter={:?}", v.display().to_string())));
    Ok(load_for(purpose, &sources, &settings)?)
}

/// Refuses a run that may take more memory than there is, unless `args` say otherwise.
fn fits(memory: &Memory, args: &TrainArgs) -> Result<()> {
    if args.ignore_memory { Ok(()) } else { memory.fits(capacity::available()) }
}

/// Loads and checks everything that a run is made of; `from` is the adapter to go on from. `look` is shown the memory that this process
/// will take, which samples or leaves that to workers, and may refuse it before anything is loaded.
pub fn ingredients(
    mut config: Config,
    from: Option<&std::path::Path>,
    samples: bool,
    look: impl FnOnce(&Memory) -> Result<()>,
) -> Result<(Ingredients, Option<AdapterFile>)> {
    let data = rows::here(&mut config.data)?;
    let mut dataset = folgore_dataset::load(&data)?;
    let elsewhere = config.rollout.remote_reward;
    let reward =
        if elsewhere { crate::reward::build(&config.reward) } else { crate::reward::build_here(&config.reward) }?;
    leave_out_evaluations(&mut config, reward.as_ref());
    config.settle_steps(dataset.train.len());
    let base = Base::of(&config.model)?;
    base.pin(&mut config.model);
    let from = from.map(base::adapter).transpose()?;
    let files = base.files()?;
    look(&capacity::memory(&config, &files, from.as_ref().map(|found| &*found.path), samples)?)?;
    let policy = Policy::of(files, base.name(), Arc::new(Cpu::new()))?.with_kv(&config.rollout);
    let procedures = SopMemory::of(&config.sop, &policy.tokenizer, config.data.prompt_prefix.as_deref())?.map(Arc::new);
    let introduced = procedures.as_ref().map(|memory| sop::introduce(memory, &mut dataset)).transpose()?;
    let procedures = procedures.zip(introduced);
    for warning in procedures.iter().flat_map(|(_, introduced)| introduced.warnings()) {
        eprintln!("warning: {warning}");
    }
    prompts::check(&config, &policy, &mut dataset)?.iter().for_each(|warning| eprintln!("warning: {warning}"));
    if let Some(name) = from.as_ref().and_then(|found| found.hub.as_ref()) {
        config.model.adapter = Some(name.to_string().into());
    }
    let adapter = from.map(|found| policy.read_adapter(&found.path)).transpose()?;
    let lora = match &adapter {
        Some(file) => file.config.clone(),
        None => fresh_lora(&config.lora)?,
    };
    let traces = Traces::load(&rows::traces_here(&mut config.traces)?, &data, &dataset.train)?;
    let recall = compose::recall(&config);
    let retriever = match config.rollout.searches() {
        true => {
            crate::retriever::pin(&mut config.retriever)?;
            Some(crate::retriever::build(&config.retriever)?)
        }
        false => None,
    };
    if retriever.is_some() {
        crate::retriever::expect_tags(&config, &policy.tokenizer)?;
    }
    Ok((
        Ingredients { config, policy: Arc::new(policy), dataset, traces, reward, retriever, procedures, lora, recall },
        adapter,
    ))
}

/// An evaluation asks for completions that are judged by themselves, because a rank in a group does not tell policies apart.
fn leave_out_evaluations(config: &mut Config, reward: &dyn Reward) {
    if reward.judges_alone() || !config.eval.is_on() {
        return;
    }
    eprintln!("note: evaluations are left out: {}", crate::reward::cannot_evaluate(reward));
    (config.eval.before, config.eval.after, config.eval.eval_steps) = (false, false, 0);
}

/// The learner's own things, at the standing that the newest checkpoint says.
pub fn parts(
    what: &Ingredients,
    dir: &RunDir,
    checkpoints: CheckpointStore,
    newest: Option<&Checkpoint>,
    adapter: Option<&AdapterFile>,
) -> Result<(LearnerParts<Cpu>, Standing)> {
    let c = &what.config;
    let (params, _) = what.policy.params(&c.lora, c.run.seed, adapter)?;
    let mut trainee = Trainee::new(what.policy.decoder.clone(), params)?.with_recall(what.recall.clone());
    trainee.optimize_with(c.optim.optim);
    let mut standing = Standing::default();
    if let Some(checkpoint) = newest {
        let trainer = TrainerState::from_bytes(&checkpoint.read(state::TRAINER)?).map_err(anyhow::Error::msg)?;
        trainer.expect_optimizer(c.optim.optim).map_err(anyhow::Error::msg)?;
        let moments = safetensors::from_bytes(state::OPTIMIZER, checkpoint.read(state::OPTIMIZER)?)?;
        let updates =
            trainer.schedule["updates"].as_u64().context("state/trainer.json: schedule.updates is missing")?;
        trainee.restore(&moments, updates)?;
        let first_free_group = trainer.cursors.get(FIRST_FREE_GROUP).copied().unwrap_or(0);
        standing = Standing { step: trainer.step, first_free_group, counters: trainer.counters };
    }
    let metrics = MetricsLog::open(dir.file("metrics.jsonl"))?;
    Ok((LearnerParts { trainee, checkpoints, metrics }, standing))
}

/// What would be done: the resolved configuration, the memory, and the arithmetic of a step.
fn dry_run(config: Config, args: &TrainArgs) -> Result<()> {
    let from = config.model.adapter.clone();
    let mut predicted = String::new();
    let found = ingredients(config, from.as_deref(), args.nats.is_none(), |memory| {
        predicted = memory.to_string();
        fits(memory, args)
    });
    // what does not fit is told with all its parts
    let (what, _) = found.inspect_err(|_| print!("{predicted}"))?;
    print!("{}", what.config.resolved_yaml()?);
    println!("---");
    println!("{}", arithmetic(&what));
    if let Some(example) = what.procedures.iter().find_map(|(_, introduced)| introduced.example.as_ref()) {
        println!("the first question with a procedure:\n{}", prompt_text(example));
    }
    print!("{predicted}");
    Ok(())
}

/// Infrastructure logs go to a file of this launch; standard output shows training only.
pub(super) fn log_to(folder: &std::path::Path) -> Result<()> {
    let path = folder.join("folgore.log");
    let file = fs::File::create(&path).with_context(|| path.display().to_string())?;
    telemetry::log_to(Arc::new(file), "info");
    Ok(())
}
