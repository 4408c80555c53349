//! `folgore sft`: from rows to an adapter that says what they say.

use std::{fs, time::Instant};

use anyhow::{Context as _, Result, bail};
use folgore_actors::Shutdown;
use folgore_config::{Config, Loaded, Purpose};
use folgore_learner::{
    checkpoint::{Checkpoint, CheckpointStore, MetricsLog, TrainerState, state},
    sft::{Sft, Standing, best::BestFolder},
    trainee::Trainee,
};
use folgore_model::{backend::Cpu, files::safetensors};

use super::train::{Ended, INTERRUPTED, command_line, log_to, read_config_for, told, with_way_out};
use crate::{
    capacity::{self, Memory},
    cli::sft::SftArgs,
    console::say,
    run_dir::{self, RunDir},
    sft::{
        Prepared, SftConsole,
        console::arithmetic,
        prepare,
        prepare::{KIND, expect_same},
    },
    signals::Signals,
};

/// Runs the command.
pub fn run(args: SftArgs) -> Result<()> {
    match sft(&args)? {
        Ended::Done => Ok(()),
        Ended::Interrupted => std::process::exit(INTERRUPTED),
    }
}

fn sft(args: &SftArgs) -> Result<Ended> {
    let begin = Instant::now();
    let config = told(configuration(args)?);
    if args.dry_run {
        return dry_run(config, args).map(|()| Ended::Done);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let signals = Signals::heed(&runtime)?;
    let Launch { dir, checkpoints, newest, what } = match &args.resume {
        Some(name) => Launch::again(config, name, args)?,
        None => Launch::first(config, args)?,
    };
    log_to(&dir.next_attempt()?)?;
    let (trainee, standing) = trainee(&what, newest.as_ref())?;
    let metrics = dir.file("metrics.jsonl");
    if newest.is_none() {
        fs::write(dir.file(run_dir::CONFIG), what.config.resolved_yaml()?)?;
        fs::write(dir.file("command.txt"), command_line())?;
        // lines of a launch that saved nothing: everything is done again
        fs::write(&metrics, "")?;
    }
    let mut console = SftConsole::new(&what, &dir, standing.step, begin)?;
    say(&arithmetic(&what));
    if standing.step > 0 {
        say(&format!("resumed from step {}", standing.step));
    }
    let shutdown = Shutdown::new();
    signals.stop(shutdown.clone(), say);
    let order = what.plan.order;
    let best = what.config.sft.load_best_model_at_end.then(|| BestFolder::at(dir.file("best"))).transpose()?;
    let run = Sft {
        trainee,
        train: Box::new(what.train),
        held_out: what.held_out,
        plan: what.plan,
        checkpoints,
        best,
        metrics: MetricsLog::open(metrics)?,
    };
    let ended = run.run(standing, || shutdown.is_stopping(), &mut console);
    let ended = ended.map_err(|error| with_way_out(error.into(), &dir.name))?;
    let epochs = order.epochs(ended.standing.step);
    console.end(&ended, epochs)?;
    if signals.came() {
        say(&format!("stopped; go on with --resume {}", dir.name));
        return Ok(Ended::Interrupted);
    }
    Ok(Ended::Done)
}

/// What is loaded and found before the first step.
struct Launch {
    dir: RunDir,
    checkpoints: CheckpointStore,
    newest: Option<Checkpoint>,
    what: Prepared,
}

impl Launch {
    /// A new run. What cannot be loaded is found before the run has a folder.
    fn first(config: Config, args: &SftArgs) -> Result<Self> {
        let (output_dir, name, keep) =
            (config.run.output_dir.clone(), config.run.name.clone(), config.checkpoint.save_total_limit);
        run_dir::expect_free(&output_dir, name.as_deref())?;
        let from = config.model.adapter.clone();
        let what = prepare::prepare(config, from.as_deref(), |memory| fits(memory, args))?;
        let dir = RunDir::begin(&output_dir, name.as_deref())?;
        let (checkpoints, _) = dir.checkpoints(keep, |line| eprintln!("{line}"))?;
        Ok(Self { dir, checkpoints, newest: None, what })
    }

    /// The run `name` again, from its newest checkpoint, or from where it began if there is none.
    fn again(config: Config, name: &str, args: &SftArgs) -> Result<Self> {
        let dir = RunDir::resume(&config.run.output_dir, name)?;
        if dir.record().exists() {
            bail!("{name} learns from rewards: go on with `folgore train --resume {name}`");
        }
        let (checkpoints, newest) = dir.checkpoints(config.checkpoint.save_total_limit, |line| eprintln!("{line}"))?;
        let from = newest.as_ref().map(|checkpoint| checkpoint.path.clone()).or_else(|| config.model.adapter.clone());
        let what = prepare::prepare(config, from.as_deref(), |memory| fits(memory, args))?;
        if let Some(checkpoint) = &newest {
            let then = &checkpoint.manifest.identity;
            if then.get("kind").is_none_or(|kind| kind != KIND) {
                bail!("{name} is no run of folgore sft");
            }
            expect_same(then, &what.plan.identity)?;
        }
        Ok(Self { dir, checkpoints, newest, what })
    }
}

/// What trains, and where it stands.
fn trainee(what: &Prepared, newest: Option<&Checkpoint>) -> Result<(Trainee<Cpu>, Standing)> {
    let c = &what.config;
    let (params, _) = what.policy.params(&c.lora, c.run.seed, what.adapter.as_ref())?;
    let mut trainee = Trainee::new(what.policy.decoder.clone(), params)?;
    trainee.optimize_with(c.optim.optim);
    let Some(checkpoint) = newest else { return Ok((trainee, Standing::default())) };
    let trainer = TrainerState::from_bytes(&checkpoint.read(state::TRAINER)?).map_err(anyhow::Error::msg)?;
    trainer.expect_optimizer(c.optim.optim).map_err(anyhow::Error::msg)?;
    let moments = safetensors::from_bytes(state::OPTIMIZER, checkpoint.read(state::OPTIMIZER)?)?;
    let updates = trainer.schedule["updates"].as_u64().context("state/trainer.json: schedule.updates is missing")?;
    trainee.restore(&moments, updates)?;
    Ok((trainee, Standing::of(&trainer)))
}

/// Refuses a run that may take more memory than there is, unless `args` say otherwise.
fn fits(memory: &Memory, args: &SftArgs) -> Result<()> {
    if args.ignore_memory { Ok(()) } else { memory.fits(capacity::available()) }
}

/// The configuration that the arguments ask for; on resume, the one that the run began with.
fn configuration(args: &SftArgs) -> Result<Loaded> {
    let mut given = args.config.clone();
    let mut set = |key: &str, value: Option<String>| given.given.extend(value.map(|value| format!("{key}={value}")));
    let path = |path: &std::path::PathBuf| format!("{:?}", path.display().to_string());
    set("run.name", args.run_name.as_ref().map(|name| format!("{name:?}")));
    set("run.output_dir", args.output_dir.as_ref().map(path));
    set("optim.max_steps", args.max_steps.map(|steps| steps.to_string()));
    // the steps that are asked for here win over epochs that are asked for elsewhere
    set("optim.num_train_epochs", args.max_steps.map(|_| "null".into()));
    set("sft.from_run", args.from_run.as_ref().map(path));
    set("sft.top", args.top.map(|share| share.to_string()));
    if let Some(name) = &args.resume {
        let output_dir = args.output_dir.clone().unwrap_or_else(|| Config::default().run.output_dir);
        let path = run_dir::find(&output_dir, name)?.join(run_dir::CONFIG);
        if given.given.iter().any(|given| !given.contains('=')) {
            bail!("--resume goes on with the run's own config.yaml: give key=value settings only");
        }
        given.given.insert(0, path.display().to_string());
    }
    read_config_for(Purpose::Sft, &given)
}

/// What would be done: the resolved configuration, the rows, and the memory.
fn dry_run(config: Config, args: &SftArgs) -> Result<()> {
    let from = config.model.adapter.clone();
    let mut predicted = String::new();
    let found = prepare::prepare(config, from.as_deref(), |memory| {
        predicted = memory.to_string();
        fits(memory, args)
    });
    // what does not fit is told with all its parts
    let what = found.inspect_err(|_| print!("{predicted}"))?;
    print!("{}", what.config.resolved_yaml()?);
    println!("---");
    println!("{}", arithmetic(&what));
    print!("{predicted}");
    Ok(())
}
