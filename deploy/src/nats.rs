//! A NATS server for runs on several machines: the files it is started with, who may connect and what each may do.

pub mod certificates;
pub mod control;
pub mod files;
pub mod identities;
pub mod permissions;
pub mod server_file;
pub mod status;
