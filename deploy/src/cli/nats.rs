//! `folgore nats`, as types.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use folgore_protocol::names::check_name;

use crate::nats::{identities::role_named, server_file::parse_bytes};

/// What to do with a server.
#[derive(Debug, Subcommand)]
pub enum NatsCommand {
    /// Makes the files of a server: configuration, certificates, the head's identity; a second time changes nothing
    Init(NatsInitArgs),
    /// Makes an identity for one process on another machine, with what its role needs and no more
    AddWorker(NatsAddWorkerArgs),
    /// Shows the runs on a server: queues, workers, policy, who leads
    Status(NatsStatusArgs),
    /// Deletes a run's streams and buckets from a server; what the run's folder holds stays
    Rm(NatsRmArgs),
}

/// `nats init`
#[derive(Debug, Args)]
#[command(after_help = "\
Afterwards: nats-server -c DIR/server.conf, then `folgore nats add-worker NAME --role rollout` for each process elsewhere.
Names and addresses once given are kept; another --host issues the server's certificate again, with the same key.
To end an identity, delete DIR/identities/NAME and run this again: users.conf is made from the folders.")]
pub struct NatsInitArgs {
    /// Folder of the server
    #[arg(long, default_value = "nats")]
    pub dir: PathBuf,
    /// DNS name or IP address by which workers reach the server; may be given several times. Without any, only this machine can
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
    /// Makes an identity for a worker too, if it is not there; may be given several times; rollout workers unless told otherwise
    #[arg(long, value_name = "NAME[:ROLE]", value_parser = parse_worker)]
    pub worker: Vec<(String, folgore_protocol::Role)>,
    /// Port [4222 at first]
    #[arg(long)]
    pub port: Option<u16>,
    /// Most that streams and buckets may take on disk [at first 20GB, or 80 % of what is free if that is less]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_file_store: Option<u64>,
    /// Creates the streams and buckets of a run too, on the server at this address
    #[arg(long = "nats", requires = "run")]
    pub url: Option<String>,
    /// The run that --nats is for
    #[arg(long, requires = "url")]
    pub run: Option<String>,
}

/// The name and the role in `NAME[:ROLE]`.
fn parse_worker(text: &str) -> Result<(String, folgore_protocol::Role), String> {
    let (name, role) = text.split_once(':').unwrap_or((text, "rollout"));
    check_name("identity", name)?;
    Ok((name.to_owned(), role_named(role).map_err(|e| e.to_string())?))
}

/// `nats add-worker`
#[derive(Debug, Args)]
pub struct NatsAddWorkerArgs {
    /// Name of the process, the only one that it can hand things in under
    pub name: String,
    /// What it does: rollout, reward, retriever, console, or head for a second machine that may lead
    #[arg(long, default_value = "rollout", value_parser = |name: &str| role_named(name).map_err(|e| e.to_string()))]
    pub role: folgore_protocol::Role,
    /// Folder of the server
    #[arg(long, default_value = "nats")]
    pub dir: PathBuf,
    /// Makes new keys for a name that is taken; the old ones end
    #[arg(long)]
    pub replace: bool,
}

/// Where a server is and who asks.
#[derive(Clone, Debug, Args)]
pub struct NatsServerArgs {
    /// Address of the server, nats://host:port
    #[arg(long = "nats")]
    pub url: String,
    /// Folder of the identity to connect with [nats/identities/head if it is there]
    #[arg(long, value_name = "DIR")]
    pub identity: Option<PathBuf>,
}

/// `nats status`
#[derive(Debug, Args)]
pub struct NatsStatusArgs {
    /// The server.
    #[command(flatten)]
    pub server: NatsServerArgs,
    /// Only this run
    #[arg(long)]
    pub run: Option<String>,
    /// Prints one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

/// `nats rm`
#[derive(Debug, Args)]
pub struct NatsRmArgs {
    /// The run
    pub run: String,
    /// The server.
    #[command(flatten)]
    pub server: NatsServerArgs,
    /// Deletes without asking
    #[arg(long)]
    pub yes: bool,
}
