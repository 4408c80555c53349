//! `folgore search`: the best passages of an index for a query.

use anyhow::{Result, anyhow};
use folgore_config::{RankBy, RetrieverSection};
use folgore_retriever::{
    passage,
    store::{ChunkText, Filter},
};
use serde_json::json;

use crate::{
    cli::search::{SearchArgs, SearchBy},
    commands::index::plain,
    retriever::{self, Opened},
    stream::quietly,
};

/// Lines shown of a passage; `--json` has all of it.
const LINES_SHOWN: usize = 12;

/// Runs the command.
pub fn run(args: &SearchArgs) -> Result<()> {
    let filter = args.filter.iter().try_fold(Filter::default(), |filter, asked| filter.with(asked));
    let filter = filter.map_err(|wrong| anyhow!(wrong))?;
    let by = args.by.map(|by| match by {
        SearchBy::Words => RankBy::Words,
        SearchBy::Vectors => RankBy::Vectors,
        SearchBy::Both => RankBy::Both,
    });
    let section = RetrieverSection {
        by,
        encoder: args.encoder.clone(),
        rerank: args.rerank.clone(),
        candidates: args.candidates,
        filter: filter.0,
        ..RetrieverSection::default()
    };
    let Opened { index, ranked } = retriever::open(&args.index, &section)?;
    let found = index.find(&args.query, args.top_k as usize)?;
    if args.json {
        let passages: Vec<_> = found.into_iter().map(|(chunk, score)| row(chunk, score)).collect();
        return quietly(
            format!("{}\n", json!({ "query": args.query, "ranked": ranked, "passages": passages })).as_bytes(),
        );
    }
    if found.is_empty() {
        return quietly(b"nothing found\n");
    }
    let shown: String =
        found.into_iter().enumerate().map(|(rank, (chunk, score))| lines(rank + 1, chunk, score)).collect();
    quietly(shown.as_bytes())
}

fn row(chunk: ChunkText, score: f32) -> serde_json::Value {
    let (document, bytes) = (chunk.document.clone(), [chunk.chunk.bytes.start, chunk.chunk.bytes.end]);
    let passage = passage(chunk, score);
    json!({
        "id": passage.id, "title": passage.title, "text": passage.text, "score": passage.score,
        "document": document, "bytes": bytes,
    })
}

fn lines(rank: usize, chunk: ChunkText, score: f32) -> String {
    let passage = passage(chunk, score);
    let mut shown = format!("{rank}. {}  {score:.3}\n", plain(&passage.id));
    if !passage.title.is_empty() {
        shown += &format!("   {}\n", plain(&passage.title));
    }
    let text = plain(&passage.text);
    for line in text.lines().take(LINES_SHOWN) {
        shown += &format!("     {}\n", line.chars().take(160).collect::<String>());
    }
    if text.lines().nth(LINES_SHOWN).is_some() {
        shown += "     ...\n";
    }
    shown
}
