//! One child process that is asked by a line of JSON and answers by one, with everything that it started.
//!
//! The child leads a process group of its own. Whoever drops a [`Child`] ends the whole group, at once: that is what a
//! deadline does to a child that hangs. A child also ends when we do: its standard input ends, and on Linux the kernel kills
//! it, even if it reads nothing any more.

use std::{
    io,
    process::Stdio,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{Sender, channel},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{ChildStderr, ChildStdin, ChildStdout, Command},
    runtime::Handle,
    sync::oneshot,
    time::timeout,
};

use super::{shown, wire::MAX_ANSWER};

/// Longest line of standard error that is logged in one piece.
const MAX_LOGGED: usize = 4096;
/// How long a child that closed its output has to end by itself, so that its exit code can be told.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// A running child.
pub(super) struct Child {
    process: tokio::process::Child,
    /// Its process group, until that was killed.
    group: Option<i32>,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    last_words: Arc<Mutex<String>>,
}

impl Child {
    /// Starts `argv`, whose standard error goes to the log under the name of the reward.
    ///
    /// # Errors
    /// What the system says.
    pub(super) async fn start(name: &str, argv: &[String]) -> io::Result<Self> {
        let Some((program, args)) = argv.split_first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program"));
        };
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        #[cfg(target_os = "linux")]
        // SAFETY: runs between fork and exec, and makes one system call, which allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let mut process = spawn(command).await?;
        let (Some(input), Some(output), Some(errors)) =
            (process.stdin.take(), process.stdout.take(), process.stderr.take())
        else {
            return Err(io::Error::other("the child has no pipes"));
        };
        let last_words = Arc::<Mutex<String>>::default();
        tokio::spawn(log(name.to_owned(), errors, last_words.clone()));
        tracing::debug!(reward = name, pid = process.id(), "reward process started");
        let group = process.id().and_then(|pid| i32::try_from(pid).ok());
        Ok(Self { process, group, input, output: BufReader::new(output), last_words })
    }

    /// True if the child has not ended.
    pub(super) fn lives(&mut self) -> bool {
        let lives = matches!(self.process.try_wait(), Ok(None));
        if !lives {
            self.kill_group();
        }
        lives
    }

    /// Ends whatever of the group is still there. Its number is the child's: it is not given to another process while a member
    /// lives, and not so soon after.
    fn kill_group(&mut self) {
        #[cfg(unix)]
        if let Some(group) = self.group.take() {
            // SAFETY: a system call on numbers.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
    }

    /// Writes `line` and reads one. After an error the child is of no use any more.
    ///
    /// # Errors
    /// Why there is no line: the child ended (with its exit code and last words), or the line is too long.
    pub(super) async fn exchange(&mut self, line: &[u8]) -> Result<Vec<u8>, String> {
        let (input, output) = (&mut self.input, &mut self.output);
        let write = async {
            input.write_all(line).await?;
            input.write_all(b"\n").await?;
            input.flush().await
        };
        // Both at once: a child that talks before it has heard all must not wait for a reader that waits for it.
        let told = tokio::try_join!(write, read_line(output, MAX_ANSWER));
        match told {
            Ok(((), Some(line))) => Ok(line),
            Ok(((), None)) => Err(self.end().await),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(self.end().await),
            Err(error) => Err(error.to_string()),
        }
    }

    /// How a child ended that closed its pipes.
    async fn end(&mut self) -> String {
        let ended = timeout(ENDS_WITHIN, self.process.wait()).await;
        self.kill_group();
        let how = match ended {
            Ok(Ok(status)) => format!("the process ended with {}", status),
            _ => "the process closed its output".to_owned(),
        };
        // The log's task may need a moment more than the process.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.is_empty() { how } else { format!("{how}: {words}") }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill_group();
    }
}

/// One line without its end, or none at the end of `reader`.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), most: usize) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let part = reader.fill_buf().await?;
        if part.is_empty() {
            return Ok(None);
        }
        let end = part.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(part.len());
        line.extend_from_slice(&part[..taken]);
        if line.len() > most {
            return Err(io::Error::other(format!("expected a line of at most {most} bytes, got {:?}", shown(&line))));
        }
        let used = end.map_or(taken, |_| taken + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

/// Logs what a child writes to its standard error, in pieces of bounded length, and keeps the last.
async fn log(name: String, errors: ChildStderr, last: Arc<Mutex<String>>) {
    let mut reader = BufReader::with_capacity(MAX_LOGGED, errors);
    loop {
        let Ok(part) = reader.fill_buf().await else { return };
        if part.is_empty() {
            return;
        }
        let (mut line, mut whole) = (Vec::new(), false);
        while line.len() < MAX_LOGGED && !whole {
            let Ok(part) = reader.fill_buf().await else { return };
            if part.is_empty() {
                break;
            }
            let end = part.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(part.len());
            line.extend_from_slice(&part[..taken]);
            whole = end.is_some();
            reader.consume(end.map_or(taken, |_| taken + 1));
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if !text.is_empty() {
            tracing::info!(reward = name, "{text}");
            *last.lock().unwrap_or_else(PoisonError::into_inner) = shown(text.as_bytes());
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Starts `command` on a thread that never ends: "dies with its parent" means the thread that started it.
async fn spawn(mut command: Command) -> io::Result<tokio::process::Child> {
    static STARTER: OnceLock<Option<Sender<Job>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (jobs, todo) = channel::<Job>();
        let thread = std::thread::Builder::new().name("reward-start".into());
        let started = thread.spawn(move || todo.into_iter().for_each(|job| job()));
        started.is_ok().then_some(jobs)
    });
    let (done, result) = oneshot::channel();
    let runtime = Handle::current();
    let job: Job = Box::new(move || {
        let _here = runtime.enter();
        // Nobody waits any more: the child is dropped, and with it killed.
        drop(done.send(command.spawn()));
    });
    let gone = || io::Error::other("the thread that starts processes is gone");
    starter.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
    result.await.map_err(|_| gone())?
}
