//! Replay, its record and the checkpoints: order, crashes, refusals, and whole steps over the local links.

mod checkpoints;
mod common;
mod crashes;
mod evaluation;
mod intake;
mod order;
mod service;
mod steps;
