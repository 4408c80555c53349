//! `folgore index`: documents into an index, of which only what changed is read.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::Result;
use folgore_retriever::{
    chunk::{ChunkSettings, Chunker},
    indexing::{self, Noted, Report},
    read::{ReadLimits, Source},
    store::Store,
};
use serde_json::json;

use crate::{cli::search::IndexArgs, stream::quietly};

/// Names shown of each kind; `--json` shows all.
const SHOWN: usize = 10;
/// Between two looks at the progress.
const EVERY: Duration = Duration::from_millis(200);

/// Runs the command.
pub fn run(args: &IndexArgs) -> Result<()> {
    let settings =
        ChunkSettings { max_tokens: args.max_tokens, min_tokens: args.min_tokens, ..ChunkSettings::default() };
    let chunker = Chunker::new(settings)?;
    let sources = Source::all(&args.sources)?;
    let limits = ReadLimits { file_bytes: args.max_file_mb.saturating_mul(1 << 20), ..ReadLimits::default() };
    let store = Store::open(&args.out, chunker.settings())?;
    if args.clear {
        store.clear()?;
    }
    let begin = Instant::now();
    let mut progress = Progress::new();
    let report = indexing::index(&store, &chunker, &sources, &limits, &mut |report, file| progress.show(report, file))?;
    progress.end();
    let (counts, digest) = (store.counts()?, store.digest()?);
    if args.json {
        let all = json!({ "index": args.out, "digest": digest, "counts": counts, "report": report });
        return quietly(format!("{all}\n").as_bytes());
    }
    let mut said = said(&report);
    writeln!(
        said,
        "{}: {} documents in {} chunks, corpus {}, {:.1} s",
        args.out.display(),
        counts.documents,
        counts.chunks,
        digest.short(),
        begin.elapsed().as_secs_f64()
    )?;
    quietly(said.as_bytes())
}

fn said(report: &Report) -> String {
    let Report {
        files_read,
        files_unchanged,
        files_removed,
        documents_added,
        documents_changed,
        documents_removed,
        ..
    } = report;
    let mut said = format!("files      {files_read} read, {files_unchanged} unchanged, {files_removed} removed\n");
    said += &format!("documents  {documents_added} added, {documents_changed} changed, {documents_removed} removed\n");
    for (name, noted) in [("skipped", &report.skipped), ("noted", &report.notes)] {
        said += &listed(name, noted);
    }
    said
}

/// The first of many names with what is said of them.
fn listed(name: &str, noted: &Noted) -> String {
    if noted.count == 0 {
        return String::new();
    }
    let mut list = format!("{name:<10} {}\n", noted.count);
    for (name, why) in noted.names.iter().take(SHOWN) {
        list += &format!("  {}: {}\n", plain(name), plain(why));
    }
    if noted.count > SHOWN as u64 {
        list += "  ... and more, with --json\n";
    }
    list
}

/// A text without signs that a terminal acts on.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c }).collect()
}

/// One line on a terminal that says how far it is.
struct Progress {
    terminal: bool,
    shown: Option<Instant>,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), shown: None }
    }

    fn show(&mut self, report: &Report, file: &str) {
        if !self.terminal || self.shown.is_some_and(|shown| shown.elapsed() < EVERY) {
            return;
        }
        self.shown = Some(Instant::now());
        let name: String = plain(file).replace(['\n', '\t'], " ").chars().take(60).collect();
        let files = report.files_read + report.files_unchanged;
        // nobody reading is no reason to stop
        let _ = write!(std::io::stderr(), "\r\x1b[K{files} files, {} documents new: {name}", report.documents_added);
    }

    fn end(&self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
