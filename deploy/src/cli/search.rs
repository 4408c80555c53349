//! `index` and `search`.

use std::path::PathBuf;

use clap::Args;

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
    /// Most tokens of a chunk, about; rows of JSONL are never cut. Another size reads everything again
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    pub max_tokens: usize,
    /// Smaller chunks are joined with their neighbours
    #[arg(long, value_name = "TOKENS", default_value_t = 32)]
    pub min_tokens: usize,
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

/// `search`
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// What to look for
    pub query: String,
    /// Folder of the index
    #[arg(long, value_name = "DIR", default_value = "index")]
    pub index: PathBuf,
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
