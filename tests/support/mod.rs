//! What the system tests share: the built executable as a child that never outlives its test, and what a run leaves behind.
#![allow(dead_code, reason = "each test target uses its own part")]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use folgore_learner::record::{Record, Snapshot};
use serde_json::{Map, Value};
use tempfile::TempDir;

/// Longest that anything here may take; on an idle machine it takes seconds.
const DEADLINE: Duration = Duration::from_secs(240);
/// Between two looks at a file.
const LOOK: Duration = Duration::from_micros(200);

/// One object of `metrics.jsonl`.
pub type Line = Map<String, Value>;

/// A folder of its own, inside the build's, gone with its test.
pub fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The executable with `args`.
pub fn folgore<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_folgore"));
    command.args(args).stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// What a process said and how it ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// Itself, if it ended well.
    #[track_caller]
    pub fn well(self) -> Self {
        assert!(self.status.success(), "{}\n{}\n{}", self.status, self.stdout, self.stderr);
        self
    }
}

/// A process whose streams go to files, so that it never waits for its reader. Dropping it kills it.
pub struct Running {
    child: Child,
    streams: TempDir,
    begin: Instant,
}

impl Running {
    /// Starts `command`.
    pub fn start(mut command: Command) -> Self {
        let streams = folder();
        let stream = |name: &str| File::create(streams.path().join(name)).unwrap();
        command.stdout(stream("stdout")).stderr(stream("stderr"));
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, streams, begin: Instant::now() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn stream(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.streams.path().join(name)).unwrap()).into_owned()
    }

    /// Looks at `done` until it is true; false if the process ended before.
    #[track_caller]
    pub fn until(&mut self, mut done: impl FnMut() -> bool) -> bool {
        while !done() {
            if self.child.try_wait().unwrap().is_some() {
                return done();
            }
            assert!(self.begin.elapsed() < DEADLINE, "{}\n{}", self.stream("stdout"), self.stream("stderr"));
            sleep(LOOK);
        }
        true
    }

    /// What it has printed so far.
    pub fn said(&self) -> String {
        self.stream("stdout")
    }

    /// Waits until it has printed `text`.
    #[track_caller]
    pub fn until_it_says(&mut self, text: &str) -> bool {
        let path = self.streams.path().join("stdout");
        self.until(|| fs::read_to_string(&path).is_ok_and(|said| said.contains(text)))
    }

    /// Ends it as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends it the signal `name` (`INT`).
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().unwrap();
        assert!(status.success(), "kill -s {name}: {status}");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        self.until(|| false);
        let status = self.child.wait().unwrap();
        Ended { status, stdout: self.stream("stdout"), stderr: self.stream("stderr") }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // it may have ended by itself
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs `command` to its end.
#[track_caller]
pub fn run(command: Command) -> Ended {
    Running::start(command).end()
}

/// Runs the executable with `args`, which it must refuse: in one line on standard error that holds all of `names`, with an
/// exit code that says so, and without a panic. Returns the line.
#[track_caller]
pub fn refused(command: Command, names: &[&str]) -> String {
    let shown = format!("{command:?}");
    let ended = run(command);
    let said = ended.stderr.trim_end();
    assert!(!ended.status.success(), "{shown} was taken:\n{}\n{said}", ended.stdout);
    assert!(ended.status.code().is_some(), "{shown}: {}", ended.status);
    for stream in [said, &ended.stdout] {
        assert!(!stream.contains("panicked") && !stream.contains("RUST_BACKTRACE"), "{shown}:\n{stream}");
    }
    let lines: Vec<&str> = said.lines().filter(|l| !l.starts_with("warning: ") && !l.starts_with("note: ")).collect();
    assert_eq!(lines.len(), 1, "{shown}: expected one line, got\n{said}\nafter\n{}", ended.stdout);
    for name in names {
        assert!(lines[0].contains(name), "{shown}: {name:?} is not in\n{said}");
    }
    lines[0].to_owned()
}

/// The whole lines of steps of `metrics.jsonl` in the folder of a run, as they are.
pub fn raw_metrics(run: &Path) -> Vec<String> {
    raw_lines(run).into_iter().filter(|line| !line.contains("\"eval\":")).collect()
}

/// All whole lines of `metrics.jsonl`, those of evaluations too.
pub fn raw_lines(run: &Path) -> Vec<String> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(str::to_owned).collect()
}

/// The same, read.
pub fn lines(run: &Path) -> Vec<Line> {
    raw_lines(run).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The lines of steps, read.
pub fn metrics(run: &Path) -> Vec<Line> {
    raw_metrics(run).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The number under `key`.
#[track_caller]
pub fn number(line: &Line, key: &str) -> f64 {
    line.get(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {key:?} in {line:?}"))
}

/// Leaves out what depends on the clock.
pub fn timeless(mut line: Line) -> Line {
    line.retain(|key, _| key != "step_time" && !key.starts_with("time/") && !key.starts_with("perf/"));
    line
}

/// Steps of the folders that are checkpoints.
pub fn checkpoints(run: &Path) -> Vec<u64> {
    let names = fs::read_dir(run.join("checkpoints")).into_iter().flatten().map(|e| e.unwrap().file_name());
    names.filter_map(|name| name.to_str()?.strip_prefix("checkpoint-")?.parse().ok()).collect()
}

/// True if a save is under way, or was when its process died.
pub fn is_saving(run: &Path) -> bool {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().filter_map(Result::ok);
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().contains(".tmp"))
}

/// What the record of a run holds, read from a copy: opening a record mends it.
pub fn recorded(run: &Path) -> Snapshot {
    let copy = folder();
    let path = copy.path().join("record.redb");
    fs::copy(run.join("record.redb"), &path).unwrap();
    Record::open(&path).unwrap().load().unwrap()
}
