//! `folgore nats`, as types.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::nats::{identities::role_named, server_file::parse_bytes};

/// What to do with a server.
#[derive(Debug, Subcommand)]
pub enum NatsCommand {
    /// Makes the files of a server: configuration, certificates, the head's identity; a second time changes nothing
    Init(NatsInitArgs),
    /// Makes an identity for one process on another machine, with what its role needs and no more
    AddWorker(NatsAddWorkerArgs),
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
    /// Port [4222 at first]
    #[arg(long)]
    pub port: Option<u16>,
    /// Most that streams and buckets may take on disk [at first 20GB, or 80 % of what is free if that is less]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_file_store: Option<u64>,
}

/// `nats add-worker`
#[derive(Debug, Args)]
pub struct NatsAddWorkerArgs {
    /// Name of the process, the only one that it can hand things in under
    pub name: String,
    /// What it does: rollout, reward, retriever, console, or head for a second machine that may lead
    #[arg(long, value_parser = |name: &str| role_named(name).map_err(|e| e.to_string()))]
    pub role: folgore_protocol::Role,
    /// Folder of the server
    #[arg(long, default_value = "nats")]
    pub dir: PathBuf,
    /// Makes new keys for a name that is taken; the old ones end
    #[arg(long)]
    pub replace: bool,
}
