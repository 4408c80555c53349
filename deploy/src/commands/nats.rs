//! `folgore nats`: a server for runs on several machines.

use std::path::Path;

use anyhow::Result;
use folgore_actors::nats::server::find_server;
use folgore_protocol::Role;

use crate::{
    cli::nats::{NatsAddWorkerArgs, NatsCommand, NatsInitArgs},
    nats::{
        control::{self, Checked, Reloaded},
        files::Kept,
        identities,
        server_file::{self, Asked, CONF, HEAD},
    },
    stream::quietly,
};

/// Runs the command.
pub fn run(command: NatsCommand) -> Result<()> {
    let said = match command {
        NatsCommand::Init(args) => init(&args)?,
        NatsCommand::AddWorker(args) => add_worker(&args)?,
    };
    quietly((said.join("\n") + "\n").as_bytes())
}

fn init(args: &NatsInitArgs) -> Result<Vec<String>> {
    let asked = Asked { hosts: args.host.clone(), port: args.port, max_file_store: args.max_file_store };
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
    Ok(said)
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
        Role::Console => format!("  folgore nats status --url {url} --identity {}", args.name),
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
