//! `index` and `search`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `index`
#[derive(Debug, Args)]
pub struct IndexArgs {
    /// Folders and files: Markdown, text, HTML, source code, JSONL rows with contents, or title and text. What was indexed under
    /// the same name before is brought to what is there now
    #[arg(value_name = "FOLDER | FILE", required = true)]
    pub sources: Vec<PathBuf>,
    /// Folder of the index
    #[arg(long, value_name = "DIR", default_value = "index")]
    pub out: PathBuf,
    /// Makes vectors of chunks: `hashed` (no model), the folder of a sentence encoder, or owner/name on the hub; `none` takes them
    /// away. The index remembers it. Without it, what the index has; a new one has words alone
    #[arg(long, value_name = "hashed | FOLDER | NAME | none")]
    pub encoder: Option<String>,
    /// Most tokens of a chunk, about, or those of the encoder's tokenizer; rows of JSONL are never cut. Another size reads everything
    /// again. Without it 256, or three quarters of what the encoder looks at
    #[arg(long, value_name = "TOKENS")]
    pub max_tokens: Option<usize>,
    /// Smaller chunks are joined with their neighbours; an eighth of --max-tokens without it
    #[arg(long, value_name = "TOKENS")]
    pub min_tokens: Option<usize>,
    /// Largest file that is read as one document; rows of JSONL do not count
    #[arg(long, value_name = "MB", default_value_t = 64)]
    pub max_file_mb: u64,
    /// Removes everything from the index first
    #[arg(long)]
    pub clear: bool,
    /// Prints one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

/// What ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SearchBy {
    /// BM25
    Words,
    /// Vectors, as the index's encoder makes them
    Vectors,
    /// Both, fused by their places
    Both,
}

/// `search`
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// What to look for
    pub query: String,
    /// Folder of the index
    #[arg(long, value_name = "DIR", default_value = "index")]
    pub index: PathBuf,
    /// What ranks; both where the index has vectors, without it
    #[arg(long, value_enum)]
    pub by: Option<SearchBy>,
    /// Encoder of the index, where it lies elsewhere than when the index was made; must be the same encoder
    #[arg(long, value_name = "FOLDER | NAME")]
    pub encoder: Option<String>,
    /// Looks at the best again: folder or name on the hub of a cross-encoder or a ColBERT
    #[arg(long, value_name = "FOLDER | NAME")]
    pub rerank: Option<String>,
    /// Passages that are fused of each ranking and looked at again
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub candidates: u32,
    /// Most passages to show
    #[arg(short = 'k', long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub top_k: u32,
    /// Only documents with this metadata (path, kind, language, columns of a row); may be given several times. A value that
    /// ends in * is a beginning
    #[arg(long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Prints one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}
