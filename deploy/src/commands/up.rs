//! `folgore up`: a NATS server, workers and a head on this machine, to try it all. Everything stops with it.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use folgore_actors::nats::server::{LocalServer, ServerOptions};
use folgore_protocol::Role;

use crate::{
    cli::UpArgs,
    commands::train::{self, Ended},
    crew::Crew,
    nats::{identities, server_file},
};

/// Runs the command.
pub fn run(args: UpArgs) -> Result<()> {
    let UpArgs { mut train, workers } = args;
    if workers == 0 {
        bail!("--workers: expected at least 1, got 0");
    }
    if train.nats.is_some() {
        bail!("--nats: `up` starts a server of its own; `folgore train --nats` goes to one that runs");
    }
    if train.dry_run {
        return train::train(train).map(drop);
    }
    let (output_dir, name) = train::place(&train)?;
    if train.resume.is_none() {
        train.run_name = Some(name.clone());
    }
    let folder = tempfile::Builder::new().prefix("folgore-up-").tempdir().context("a folder for the server")?;
    let server = Server::start(folder.path(), workers)?;
    println!("NATS server at {} (its files are in {})", server.url, folder.path().display());
    let crew = start_workers(&server, folder.path(), &name, workers)?;
    println!("{workers} rollout workers started");
    train.nats = Some(server.url.clone());
    train.identity = Some(server.identity("head"));
    let ended = train::train(train);
    crew.end();
    keep_logs(folder.path(), &output_dir.join(&name), workers);
    match ended? {
        Ended::Done => Ok(()),
        Ended::Interrupted => {
            drop((server, folder));
            std::process::exit(train::INTERRUPTED)
        }
    }
}

/// A server with TLS and an identity for every process, as on a network.
struct Server {
    url: String,
    dir: PathBuf,
    _server: LocalServer,
}

impl Server {
    fn start(folder: &Path, workers: u32) -> Result<Self> {
        let dir = folder.join("nats");
        let asked = server_file::Asked { port: Some(free_port()?), ..server_file::Asked::default() };
        let made = server_file::init(&dir, &asked)?;
        let (authority, _) = server_file::open_authority(&made.path)?;
        for i in 0..workers {
            identities::add(&made.path, &authority, &worker(i), Role::Rollout, false)?;
        }
        identities::write_users(&made.path)?;
        let options = ServerOptions {
            config_file: Some(made.path.join(server_file::CONF)),
            port: Some(made.settings.port),
            with_parent: true,
            ..ServerOptions::new(made.path.join("data"))
        };
        let server = LocalServer::start(options)?;
        Ok(Self { url: made.settings.url(), dir: made.path, _server: server })
    }

    fn identity(&self, name: &str) -> PathBuf {
        self.dir.join(identities::IDENTITIES).join(name)
    }
}

fn worker(i: u32) -> String {
    format!("worker-{i}")
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).context("a free port")?.port())
}

fn start_workers(server: &Server, folder: &Path, run: &str, workers: u32) -> Result<Crew> {
    let mut crew = Crew::new();
    for i in 0..workers {
        crew.start(&log_file(folder, i), |command| {
            command.args(["worker", "--role", "rollout", "--with-parent", "--nats", &server.url, "--run", run]);
            command.arg("--identity").arg(server.identity(&worker(i)));
            command.env("FOLGORE_CACHE", folder.join("cache"));
        })?;
    }
    Ok(crew)
}

fn log_file(folder: &Path, i: u32) -> PathBuf {
    folder.join(format!("{}.log", worker(i)))
}

/// What the workers said goes with the run.
fn keep_logs(folder: &Path, run: &Path, workers: u32) {
    let logs = run.join("logs");
    for i in 0..workers {
        let to = logs.join(format!("{}.log", worker(i)));
        if let (true, Err(error)) = (logs.is_dir(), fs::copy(log_file(folder, i), &to)) {
            eprintln!("warning: {}: {error}", to.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn up(arguments: &[&str]) -> Result<()> {
        let cli = Cli::parse_from(["folgore", "up"].iter().chain(arguments));
        let Command::Up(args) = cli.command else { panic!("{arguments:?}") };
        run(args)
    }

    #[test]
    fn what_it_cannot_do_is_refused_and_nothing_is_started_for_a_look() {
        let error = up(&["--nats", "nats://elsewhere:4222"]).unwrap_err().to_string();
        assert!(error.contains("--nats") && error.contains("folgore train --nats"), "{error}");
        assert!(up(&["--workers", "0"]).unwrap_err().to_string().contains("at least 1"));
        up(&["--dry-run", "optim.max_steps=2"]).unwrap();
    }
}
