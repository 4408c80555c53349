//! Replay, its record and the checkpoints: order, crashes, refusals, and whole steps over the local links.

mod checkpoints;
mod common;
mod crashes;
mod curriculum;
mod defence;
mod evaluation;
mod evidence;
mod given;
mod intake;
mod judging;
mod order;
mod service;
mod steps;
