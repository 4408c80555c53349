//! Worker processes of this executable on this machine, which never outlive it.

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// How long workers may take to hand back what they have.
const LEAVE_WITHIN: Duration = Duration::from_secs(20);

/// Processes that end when their standard input does, hence also when this process is killed.
#[derive(Default)]
pub struct Crew(Vec<Child>);

impl Crew {
    /// Nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts one more; `arguments` says what it is, and what it says goes to the file `log`.
    pub fn start(&mut self, log: &Path, arguments: impl FnOnce(&mut Command)) -> Result<()> {
        let program = std::env::current_exe().context("the path of this program")?;
        let said = File::create(log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(program);
        arguments(&mut command);
        command.stdin(Stdio::piped()).stdout(said.try_clone()?).stderr(said);
        // Ctrl-C is for the head, which lets them finish.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        self.0.push(command.spawn().with_context(|| format!("a worker, for {}", log.display()))?);
        Ok(())
    }

    /// Their process ids, in the order of their start.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(Child::id)
    }

    /// The first that has ended by itself, and how.
    pub fn fallen(&mut self) -> Option<(usize, ExitStatus)> {
        self.0.iter_mut().enumerate().find_map(|(i, child)| Some((i, child.try_wait().ok().flatten()?)))
    }

    /// Lets them hand back what they have, and ends those that do not.
    pub fn end(mut self) {
        self.0.iter_mut().for_each(|child| drop(child.stdin.take()));
        let until = Instant::now() + LEAVE_WITHIN;
        for child in &mut self.0 {
            let mut ended: Option<ExitStatus> = None;
            while ended.is_none() && Instant::now() < until {
                ended = child.try_wait().ok().flatten();
                sleep(Duration::from_millis(20));
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Those that have ended by themselves are not there any more.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
