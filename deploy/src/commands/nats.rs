//! `folgore nats`: a server for runs on several machines.

use std::{
    io::{BufRead as _, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use folgore_actors::nats::{Limits, Nats, NatsConfig, admin, connect, server::find_server};
use folgore_protocol::{Names, Role, RunName};
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    cli::nats::{NatsAddWorkerArgs, NatsCommand, NatsInitArgs, NatsRmArgs, NatsServerArgs, NatsStatusArgs},
    nats::{
        control::{self, Checked, Reloaded},
        files::Kept,
        identities,
        server_file::{self, Asked, CONF, HEAD},
        status::{self, RunStatus},
    },
    stream::quietly,
};

/// Runs the command.
pub fn run(command: NatsCommand) -> Result<()> {
    let said = match command {
        NatsCommand::Init(args) => init(&args)?,
        NatsCommand::AddWorker(args) => add_worker(&args)?,
        NatsCommand::Status(args) => return show(&args),
        NatsCommand::Rm(args) => remove(&args)?,
    };
    quietly((said.join("\n") + "\n").as_bytes())
}

fn init(args: &NatsInitArgs) -> Result<Vec<String>> {
    let asked = Asked {
        hosts: args.host.clone(),
        port: args.port,
        max_file_store: args.max_file_store,
        workers: args.worker.clone(),
    };
    let server = server_file::init(&args.dir, &asked)?;
    let shown = args.dir.display();
    let mut said = match server.done.is_empty() {
        true => vec![format!("{shown}: nothing changed")],
        false => server.done.iter().map(|done| format!("{shown}: {done}")).collect(),
    };
    let program = find_server();
    said.push(match control::check(&server.path, program.as_deref())? {
        Checked::Good => format!("{CONF} is good"),
        Checked::NoServer => format!(
            "{CONF} was not checked: no nats-server is on this machine (2.14 or newer; python3 deploy/nats/get_nats_server.py gets one)"
        ),
    });
    if !server.done.is_empty() {
        said.extend(told(&server.path, program.as_deref()));
    }
    let program = program.map_or_else(|| "nats-server".to_owned(), |p| p.display().to_string());
    said.push(format!("start       {program} -c {shown}/{CONF}"));
    said.push(format!(
        "head        --nats {} --identity {shown}/{}/{HEAD}",
        server.settings.url(),
        identities::IDENTITIES
    ));
    match server.settings.urls_from_elsewhere().as_slice() {
        [] => said.push("elsewhere   not reachable; --host NAME adds a name or address by which it is".to_owned()),
        urls => said.push(format!("elsewhere   {}", urls.join("  "))),
    }
    if let (Some(url), Some(run)) = (&args.url, &args.run) {
        let identity = Some(server.path.join(identities::IDENTITIES).join(HEAD));
        said.extend(create(&NatsServerArgs { url: url.clone(), identity }, run, &server.settings)?);
    }
    Ok(said)
}

/// Creates the streams and buckets of `run`.
fn create(at: &NatsServerArgs, run: &str, settings: &server_file::Settings) -> Result<Vec<String>> {
    let limits = Limits::within(settings.max_file_store);
    let done =
        runtime()?.block_on(async { Ok::<_, anyhow::Error>(admin::ensure(&join(at, run).await?, &limits).await?) })?;
    Ok(match done.is_empty() {
        true => vec![format!("run {run}: everything is there")],
        false => done.into_iter().map(|done| format!("run {run}: {done}")).collect(),
    })
}

fn add_worker(args: &NatsAddWorkerArgs) -> Result<Vec<String>> {
    let settings = server_file::settings(&args.dir)?;
    let dir = crate::nats::files::absolute(&args.dir)?;
    let (authority, _) = server_file::open_authority(&dir)?;
    identities::add(&dir, &authority, &args.name, args.role, args.replace)?;
    let shown = args.dir.join(identities::IDENTITIES).join(&args.name);
    let mut said = vec![format!("{}: made, {}", shown.display(), args.role)];
    if identities::write_users(&dir)? != Kept::Same {
        said.extend(told(&dir, find_server().as_deref()));
    }
    said.push("copy the folder to the worker's machine, over a way that nobody else can read; then there:".to_owned());
    let url = settings.urls_from_elsewhere().into_iter().next().unwrap_or_else(|| settings.url());
    said.push(match args.role {
        Role::Head => format!("  folgore train RUN.yaml --nats {url} --identity {}", args.name),
        Role::Console => format!("  folgore nats status --nats {url} --identity {}", args.name),
        role => format!("  folgore worker --role {role} --nats {url} --run RUN --identity {}", args.name),
    });
    Ok(said)
}

/// Tells a server that runs from `dir` that its files changed.
fn told(dir: &Path, server: Option<&Path>) -> Option<String> {
    match control::reload(dir, server) {
        Reloaded::Told(pid) => Some(format!("the server with process id {pid} read its file again")),
        Reloaded::NotRunning => None,
        Reloaded::Failed(why) => Some(format!(
            "the running server was not told ({why}): nats-server --signal reload={}/{}",
            dir.display(),
            server_file::PID
        )),
    }
}

/// Shows the runs, each looked at at the same time.
fn show(args: &NatsStatusArgs) -> Result<()> {
    let found = runtime()?.block_on(async {
        let runs = match &args.run {
            Some(run) => vec![run.clone()],
            None => admin::runs(&join(&args.server, ANY_RUN).await?).await?,
        };
        let mut looks = JoinSet::new();
        for run in runs {
            let server = args.server.clone();
            looks.spawn(async move { status::look(&join(&server, &run).await?, status::LISTEN).await });
        }
        let mut found = looks.join_all().await.into_iter().collect::<Result<Vec<RunStatus>>>()?;
        found.sort_by(|a, b| a.server.run.cmp(&b.server.run));
        Ok::<_, anyhow::Error>(found)
    })?;
    if args.json {
        return quietly(format!("{:#}\n", serde_json::json!({ "runs": found })).as_bytes());
    }
    let texts: Vec<String> = found.iter().map(RunStatus::text).collect::<Result<_>>()?;
    let text = if texts.is_empty() { format!("{}: no runs\n", args.server.url) } else { texts.join("\n") };
    quietly(text.as_bytes())
}

fn remove(args: &NatsRmArgs) -> Result<Vec<String>> {
    runtime()?.block_on(async {
        let nats = join(&args.server, &args.run).await?;
        let there = admin::status(&nats).await?;
        if !admin::runs(&nats).await?.contains(&args.run) {
            bail!("run {}: nothing of it is on {}; `folgore nats status` lists the runs", args.run, args.server.url);
        }
        let stores: Vec<&str> = there.stores.keys().map(String::as_str).collect();
        let led = there.head.map(|head| format!(", which {head} leads now")).unwrap_or_default();
        let question = format!("run {}{led}: deletes {} from {}", args.run, stores.join(", "), args.server.url);
        if !args.yes && !agreed(&question)? {
            return Ok(vec!["nothing was deleted".to_owned()]);
        }
        let removed = admin::remove(&nats).await?;
        Ok(removed.into_iter().map(|name| format!("deleted {name}")).collect())
    })
}

fn agreed(question: &str) -> Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("{question}; --yes does it without asking");
    }
    eprint!("{question}. Do it? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Stands for no run in particular; a connection is always for one.
const ANY_RUN: &str = "any";
/// How long a request may take; these commands are used where something is slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to `server` for `run`.
async fn join(server: &NatsServerArgs, run: &str) -> Result<Nats> {
    let run = Names::new(&RunName::new(run).map_err(anyhow::Error::msg)?).map_err(anyhow::Error::msg)?;
    let usual = PathBuf::from("nats").join(identities::IDENTITIES).join(HEAD);
    let folder = server.identity.clone().or_else(|| usual.is_dir().then_some(usual));
    let mut config = match folder {
        Some(folder) => {
            let who = identities::open(&folder)?;
            let mut config = NatsConfig::new(&server.url, run, who.role, &who.name)?;
            config.identity = Some(who.keys);
            config
        }
        None => NatsConfig::new(&server.url, run, Role::Console, "console")?,
    };
    config.request_timeout = PATIENCE;
    let identified = config.identity.is_some();
    let hint = || if identified { "" } else { "; --identity DIR names the folder of an identity" };
    connect(config).await.map_err(|e| anyhow::anyhow!("{e}{}", hint()))
}

fn runtime() -> Result<Runtime> {
    Runtime::new().context("the async runtime")
}
