//! `python: file.py:function`: the command that runs a function as TRL calls it.

use std::{
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// What the interpreter runs: it reads requests, calls the function and writes replies.
pub(super) const SHIM: &str = include_str!("../../../examples/rewards/folgore_reward.py");

/// The command for `function` of `file`. The shim travels as an argument: no file has to be written that somebody else
/// could change.
pub(super) fn command(file: &str, function: &str) -> Vec<String> {
    ["python3", "-c", SHIM, file, function].map(str::to_owned).to_vec()
}

/// How long a look may take.
const LOOK_WITHIN: Duration = Duration::from_secs(30);

/// Looks into `file` for `function`, without running anything of it: a misspelt name is told before a run begins.
///
/// # Errors
/// What is wrong: no interpreter, no such file, not Python, no such name.
pub(super) fn look(file: &str, function: &str) -> Result<(), String> {
    let mut python = Command::new("python3");
    python
        .args(["-c", SHIM, "--look", file, function])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = python.spawn().map_err(|error| format!("python3 cannot be started: {error}"))?;
    let until = Instant::now() + LOOK_WITHIN;
    // what it says fits into the pipe
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if Instant::now() >= until {
            let ended = child.kill().and_then(|()| child.wait());
            return Err(format!("python3 looks for longer than {} s ({ended:?})", LOOK_WITHIN.as_secs()));
        }
        sleep(Duration::from_millis(5));
    }
    let looked = child.wait_with_output().map_err(|error| error.to_string())?;
    if looked.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&looked.stderr).lines().last().unwrap_or("python3 failed").to_owned())
}
