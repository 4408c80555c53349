//! A server that runs from a folder made by [`super::server_file`]: checking its file, and telling it that users changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::server_file::{CONF, PID};

/// Whether the file was checked.
#[derive(Debug, PartialEq, Eq)]
pub enum Checked {
    /// The server takes it.
    Good,
    /// There is no server on this machine to ask.
    NoServer,
}

/// What became of a change of users.
#[derive(Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// The server with this process id was told.
    Told(u32),
    /// No server runs from this folder on this machine.
    NotRunning,
    /// It runs, and could not be told; why.
    Failed(String),
}

/// Asks the server whether it takes the configuration in `dir`.
pub fn check(dir: &Path, server: Option<&Path>) -> Result<Checked> {
    let Some(server) = server else { return Ok(Checked::NoServer) };
    let conf = dir.join(CONF);
    let output = Command::new(server)
        .arg("-t")
        .arg("-c")
        .arg(&conf)
        .stdin(Stdio::null())
        .output()
        .with_context(|| server.display().to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {} does not take it: {}", conf.display(), server.display(), said.trim());
    }
    Ok(Checked::Good)
}

/// Makes the server that runs from `dir` read its users again. Those that are gone are disconnected.
pub fn reload(dir: &Path, server: Option<&Path>) -> Reloaded {
    let Some(pid) = running(dir) else { return Reloaded::NotRunning };
    // the server's own executable sends the signal, so that this one needs no unsafe call
    let sent = match server {
        Some(server) => Command::new(server).arg("--signal").arg(format!("reload={pid}")).stdin(Stdio::null()).output(),
        None => Command::new("kill").args(["-s", "HUP", &pid.to_string()]).stdin(Stdio::null()).output(),
    };
    match sent {
        Ok(output) if output.status.success() => Reloaded::Told(pid),
        Ok(output) => Reloaded::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Reloaded::Failed(error.to_string()),
    }
}

/// Process id of the server that runs from `dir`: its file may be of one that was killed, and the number another's now.
fn running(dir: &Path) -> Option<u32> {
    let pid: u32 = fs::read_to_string(dir.join(PID)).ok()?.trim().parse().ok()?;
    let process = PathBuf::from(format!("/proc/{pid}/cmdline"));
    if !cfg!(target_os = "linux") {
        return Some(pid);
    }
    let command = fs::read(process).ok()?;
    let program = command.split(|byte| *byte == 0).next()?;
    String::from_utf8_lossy(program).contains("nats-server").then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_anothers_now_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(reload(dir.path(), None), Reloaded::NotRunning);
        for text in ["", "x", "4294967295", &std::process::id().to_string()] {
            fs::write(dir.path().join(PID), text).unwrap();
            assert_eq!(reload(dir.path(), None), Reloaded::NotRunning, "{text:?}");
        }
    }
}
