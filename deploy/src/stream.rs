//! JSON lines in and out, for the commands that other programs talk to.
//!
//! Rows are read one at a time, by a thread of their own so that a command can see whether more is at hand without waiting.
//! A line has a length limit, an error names file and line, and nothing after the first bad row is answered. Output to a
//! file appears whole or not at all; on standard output what was answered stands. A reader that went away is no error.

mod row;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, TryRecvError, sync_channel},
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Serialize;
use serde_json::Value;

pub use row::Row;

use crate::cli::StreamArgs;

/// Longest line taken, in bytes.
const LINE_LIMIT: u64 = 64 << 20;
/// Rows read ahead at most.
const READ_AHEAD: usize = 8;

/// The rows of a file or of standard input.
pub struct Rows {
    rows: Receiver<Result<Row>>,
    /// Reading never waits for anybody: a regular file.
    prompt: bool,
}

/// What [`Rows::at_hand`] found.
pub enum AtHand {
    /// A row.
    Row(Row),
    /// Nothing now; more may come.
    Nothing,
    /// The end.
    End,
}

impl Rows {
    /// Opens what `args` name.
    pub fn open(args: &StreamArgs) -> Result<Self> {
        match &args.input {
            None => {
                let prompt = fs::metadata("/dev/stdin").is_ok_and(|m| m.is_file());
                Ok(Self::spawn("standard input".into(), io::stdin(), prompt))
            }
            Some(path) => {
                let name = path.display().to_string();
                let file = File::open(path).with_context(|| name.clone())?;
                let kind = file.metadata().with_context(|| name.clone())?;
                if kind.is_dir() {
                    bail!("{name}: expected a file of JSON lines, got a folder");
                }
                Ok(Self::spawn(name, file, kind.is_file()))
            }
        }
    }

    fn spawn(name: String, source: impl Read + Send + 'static, prompt: bool) -> Self {
        let (send, rows) = sync_channel(READ_AHEAD);
        std::thread::spawn(move || {
            let mut lines = Lines { name, source: BufReader::with_capacity(1 << 16, source), number: 0 };
            while let Some(row) = lines.next().transpose() {
                let last = row.is_err();
                if send.send(row).is_err() || last {
                    return;
                }
            }
        });
        Self { rows, prompt }
    }

    /// The next row, waited for; none at the end.
    pub fn next(&mut self) -> Result<Option<Row>> {
        self.rows.recv().ok().transpose()
    }

    /// The next row if it is there without waiting for whoever writes the input.
    pub fn at_hand(&mut self) -> Result<AtHand> {
        if self.prompt {
            return Ok(self.next()?.map_or(AtHand::End, AtHand::Row));
        }
        match self.rows.try_recv() {
            Ok(row) => row.map(AtHand::Row),
            Err(TryRecvError::Empty) => Ok(AtHand::Nothing),
            Err(TryRecvError::Disconnected) => Ok(AtHand::End),
        }
    }
}

/// Lines of one source, parsed.
struct Lines<R> {
    name: String,
    source: BufReader<R>,
    number: u64,
}

impl<R: Read> Lines<R> {
    /// The next line that is not blank.
    fn next(&mut self) -> Result<Option<Row>> {
        loop {
            let mut line = Vec::new();
            let read = (&mut self.source).take(LINE_LIMIT + 1).read_until(b'\n', &mut line);
            let read = read.with_context(|| self.name.clone())?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            let place = format!("{}, line {}", self.name, self.number);
            if read as u64 > LINE_LIMIT {
                bail!("{place}: expected at most {LINE_LIMIT} bytes on one line");
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let value: Value = serde_json::from_slice(&line).map_err(|e| not_json(&place, &e))?;
            return match value {
                Value::Object(fields) => Ok(Some(Row::new(place, fields))),
                other => Err(anyhow!("{place}: expected a JSON object, got {}", row::kind(&other))),
            };
        }
    }
}

/// The parser counts lines of its own text, which is always line 1 here: only the column says something.
fn not_json(place: &str, error: &serde_json::Error) -> anyhow::Error {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    anyhow!("{place}: not JSON: {reason} at column {}", error.column())
}

/// Where replies go.
pub struct Out {
    to: BufWriter<Target>,
    name: String,
}

enum Target {
    Stdout(io::Stdout),
    /// A device or a pipe, written as it is.
    Special(File),
    /// Written aside, renamed at the end.
    File(Aside),
}

impl Out {
    /// Opens what `args` name.
    pub fn open(args: &StreamArgs) -> Result<Self> {
        let (target, name) = match &args.output {
            None => (Target::Stdout(io::stdout()), "standard output".to_owned()),
            Some(path) => (Target::to(path).with_context(|| path.display().to_string())?, path.display().to_string()),
        };
        Ok(Self { to: BufWriter::with_capacity(1 << 16, target), name })
    }

    /// Writes one reply. It may stay in memory until [`Out::flush`].
    pub fn write(&mut self, reply: &impl Serialize) -> Result<()> {
        let written = serde_json::to_writer(&mut self.to, reply);
        let io = |e: serde_json::Error| if e.is_io() { Ok(io::Error::from(e)) } else { Err(anyhow!(e)) };
        match written.map_err(io) {
            Ok(()) => self.to.write_all(b"\n").map_err(|e| self.fault(e)),
            Err(Ok(error)) => Err(self.fault(error)),
            Err(Err(error)) => Err(error),
        }
    }

    /// Gives the reader everything that was written.
    pub fn flush(&mut self) -> Result<()> {
        self.to.flush().map_err(|e| self.fault(e))
    }

    /// Flushes, and puts a file into its place.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        match self.to.into_parts().0 {
            Target::File(aside) => aside.put().with_context(|| self.name),
            Target::Stdout(_) | Target::Special(_) => Ok(()),
        }
    }

    fn fault(&self, error: io::Error) -> anyhow::Error {
        match error.kind() {
            io::ErrorKind::BrokenPipe => anyhow!(ReaderGone),
            _ => anyhow!(error).context(self.name.clone()),
        }
    }
}

/// Whoever read the output has closed it.
#[derive(Debug, thiserror::Error)]
#[error("the reader of the output has gone")]
struct ReaderGone;

/// Runs a command over rows and replies. That the reader has gone (`| head`) ends it without an error.
pub fn serve(args: &StreamArgs, work: impl FnOnce(&mut Rows, &mut Out) -> Result<()>) -> Result<()> {
    let run = || {
        let mut rows = Rows::open(args)?;
        let mut out = Out::open(args)?;
        let worked = work(&mut rows, &mut out);
        if worked.is_err() && args.output.is_none() {
            out.flush()?; // what was answered before the bad row
        }
        worked?;
        out.finish()
    };
    match run() {
        Err(error) if error.is::<ReaderGone>() => Ok(()),
        result => result,
    }
}

/// Writes `text` to standard output; that the reader has gone is no error.
pub fn quietly(text: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

/// Answers row by row, each before the next is read.
pub fn each<T: Serialize>(args: &StreamArgs, mut reply: impl FnMut(Row) -> Result<T>) -> Result<()> {
    serve(args, |rows, out| {
        while let Some(row) = rows.next()? {
            let place = row.place.clone();
            out.write(&reply(row).context(place)?)?;
            out.flush()?;
        }
        Ok(())
    })
}

impl Target {
    fn to(path: &Path) -> io::Result<Self> {
        match fs::metadata(path) {
            Ok(m) if m.is_dir() => Err(io::Error::new(io::ErrorKind::IsADirectory, "expected a file, got a folder")),
            Ok(m) if !m.is_file() => OpenOptions::new().write(true).open(path).map(Target::Special),
            _ => Aside::new(path).map(Target::File),
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Target::Stdout(out) => out.write(bytes),
            Target::Special(file) => file.write(bytes),
            Target::File(aside) => aside.file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Target::Stdout(out) => out.flush(),
            Target::Special(file) => file.flush(),
            Target::File(aside) => aside.file.flush(),
        }
    }
}

/// A file beside the one that is to be; removed unless it is put into its place.
struct Aside {
    file: File,
    aside: PathBuf,
    place: PathBuf,
}

impl Aside {
    fn new(place: &Path) -> io::Result<Self> {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let aside = place.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let file = File::create(&aside)?;
        Ok(Self { file, aside, place: place.to_owned() })
    }

    fn put(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.aside, &self.place)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.aside); // after a rename it is not there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Rows {
        Rows::spawn("in".into(), io::Cursor::new(text.as_bytes().to_vec()), true)
    }

    fn args(output: &Path) -> StreamArgs {
        StreamArgs { input: Some(output.with_file_name("in.jsonl")), output: Some(output.to_owned()) }
    }

    #[test]
    fn blank_lines_count_and_are_passed_over() {
        let mut rows = rows("{\"a\":1}\n\n  \n{\"a\":2}");
        assert_eq!(rows.next().unwrap().unwrap().place, "in, line 1");
        assert_eq!(rows.next().unwrap().unwrap().place, "in, line 4");
        assert!(rows.next().unwrap().is_none());
    }

    #[test]
    fn a_bad_line_is_named_with_its_column() {
        for (text, want) in [
            ("{\"a\":1}\n{\"a\":\n", "in, line 2: not JSON: EOF while parsing a value at column"),
            ("[1]\n", "in, line 1: expected a JSON object, got a list"),
            ("{\"a\": tru}\n", "in, line 1: not JSON: expected ident at column 10"),
            ("\"\u{e9}", "in, line 1: not JSON"),
        ] {
            let mut rows = rows(text);
            let error = std::iter::from_fn(|| rows.next().transpose()).find_map(Result::err).unwrap().to_string();
            assert!(error.starts_with(want), "{error:?} does not say {want:?}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("out.jsonl");
        let args = args(&place);
        fs::write(args.input.as_ref().unwrap(), "{\"a\":1}\n{\"a\":2}\n").unwrap();
        let files = || fs::read_dir(folder.path()).unwrap().count();
        let failed = each(&args, |row| if row.place.ends_with("line 2") { bail!("no") } else { Ok(Value::Null) });
        assert!(format!("{:#}", failed.unwrap_err()).contains("line 2: no"));
        assert_eq!(files(), 1, "half a reply was left behind");
        each(&args, |mut row| row.take("a")).unwrap();
        assert_eq!((fs::read_to_string(&place).unwrap().as_str(), files()), ("1\n2\n", 2));
    }

    #[test]
    fn the_input_may_be_the_output() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        fs::write(&path, "{\"a\":7}\n").unwrap();
        each(&StreamArgs { input: Some(path.clone()), output: Some(path.clone()) }, |mut row| row.take("a")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "7\n");
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("no/in.jsonl");
        for args in [
            StreamArgs { input: Some(missing.clone()), output: None },
            StreamArgs { input: Some(folder.path().to_owned()), output: None },
        ] {
            let error = format!("{:#}", Rows::open(&args).err().unwrap());
            assert!(error.contains(&args.input.unwrap().display().to_string()), "{error}");
        }
        let error =
            format!("{:#}", Out::open(&StreamArgs { input: None, output: Some(missing.clone()) }).err().unwrap());
        assert!(error.contains(&missing.display().to_string()), "{error}");
    }
}
