//! `folgore index`: documents into an index, of which only what changed is read.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use folgore_retriever::{
    encode::Encoder,
    encoding,
    indexing::{self, Noted, Report},
    read::{ReadLimits, Source},
    store::{EncoderRow, Store, StoreError},
    vectors::{GraphSettings, keep_graph},
};
use serde_json::json;

use crate::{
    cli::search::IndexArgs,
    retriever::{self, Named},
    stream::quietly,
};

/// Names shown of each kind; `--json` shows all.
const SHOWN: usize = 10;
/// Between two looks at the progress.
const EVERY: Duration = Duration::from_millis(200);

/// Runs the command.
pub fn run(args: &IndexArgs) -> Result<()> {
    let encoder = encoder(args)?;
    let chunker = encoding::chunker(encoder.as_ref().map(|e| &e.model), args.max_tokens, args.min_tokens)?;
    let sources = Source::all(&args.sources)?;
    let limits = ReadLimits { file_bytes: args.max_file_mb.saturating_mul(1 << 20), ..ReadLimits::default() };
    let store = Store::open(&args.out, chunker.settings())?;
    if args.clear {
        store.clear()?;
    }
    store.set_encoder(encoder.as_ref().map(|e| EncoderRow::of(&e.name, &*e.model)).as_ref())?;
    let begin = Instant::now();
    let mut progress = Progress::new();
    let report =
        indexing::index(&store, &chunker, &sources, &limits, &mut |report, file| progress.files(report, file))?;
    let mut encoded = 0;
    if let Some(encoder) = &encoder {
        encoded = encoding::encode(&store, &*encoder.model, &mut |done, all| progress.vectors(done, all))?;
    }
    progress.graph(store.vectors()?);
    keep_graph(&store, GraphSettings::default())?;
    progress.end();
    let (counts, digest, vectors) = (store.counts()?, store.digest()?, store.vectors()?);
    if args.json {
        let all = json!({
            "index": args.out, "digest": digest, "counts": counts, "report": report, "encoder": store.encoder()?,
            "vectors": { "encoded": encoded, "kept": vectors - encoded },
        });
        return quietly(format!("{all}\n").as_bytes());
    }
    let mut said = said(&report);
    if let Some(encoder) = &encoder {
        writeln!(said, "vectors    {encoded} made, {} kept, by {}", vectors - encoded, plain(&encoder.name))?;
    }
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

/// The encoder that is asked for, or the one that the index has.
fn encoder(args: &IndexArgs) -> Result<Option<Named<dyn Encoder>>> {
    match args.encoder.as_deref() {
        Some("none") => Ok(None),
        Some(name) => Ok(Some(retriever::encoder(name)?)),
        None => {
            let remembered = match Store::read(&args.out) {
                Err(StoreError::Missing(_)) => None,
                store => store?.encoder()?,
            };
            let opened = remembered.map(|row| {
                retriever::encoder(&row.name).context(
                    "the encoder that the index remembers; --encoder names another place or encoder, --encoder none takes its vectors away",
                )
            });
            opened.transpose()
        }
    }
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

    fn files(&mut self, report: &Report, file: &str) {
        let name: String = plain(file).replace(['\n', '\t'], " ").chars().take(60).collect();
        let files = report.files_read + report.files_unchanged;
        self.show(&format!("{files} files, {} documents new: {name}", report.documents_added));
    }

    fn vectors(&mut self, done: u64, all: u64) {
        self.show(&format!("{done} of {all} chunks have vectors"));
    }

    /// A graph takes its time and says nothing in between.
    fn graph(&mut self, vectors: u64) {
        if vectors >= GraphSettings::default().from as u64 {
            self.shown = None;
            self.show(&format!("the graph of {vectors} vectors"));
        }
    }

    fn show(&mut self, line: &str) {
        if !self.terminal || self.shown.is_some_and(|shown| shown.elapsed() < EVERY) {
            return;
        }
        self.shown = Some(Instant::now());
        // nobody reading is no reason to stop
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
    }

    fn end(&self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
