//! `python: file.py:function`: the command that runs a function as TRL calls it.

use std::process::{Command, Stdio};

/// What the interpreter runs: it reads requests, calls the function and writes replies.
pub(super) const SHIM: &str = include_str!("../../../examples/rewards/folgore_reward.py");

/// The command for `function` of `file`. The shim travels as an argument: no file has to be written that somebody else
/// could change.
pub(super) fn command(file: &str, function: &str) -> Vec<String> {
    ["python3", "-c", SHIM, file, function].map(str::to_owned).to_vec()
}

/// Looks into `file` for `function`, without running anything of it: a misspelt name is told before a run begins.
///
/// # Errors
/// What is wrong: no interpreter, no such file, not Python, no such name.
pub(super) fn look(file: &str, function: &str) -> Result<(), String> {
    let looked = Command::new("python3").args(["-c", SHIM, "--look", file, function]).stdin(Stdio::null()).output();
    let looked = looked.map_err(|error| format!("python3 cannot be started: {error}"))?;
    if looked.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&looked.stderr).lines().last().unwrap_or("python3 failed").to_owned())
}
