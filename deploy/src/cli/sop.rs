//! `folgore sop`, as types.

use clap::{Args, Subcommand};
use folgore_config::SopSection;

/// What to do with procedures.
#[derive(Debug, Subcommand)]
pub enum SopCommand {
    /// Reads procedures and lists them; what is wrong with a file is told with procedure and field
    List(ListArgs),
    /// Finds the procedures that fit a question, and shows them as a policy is told
    Find(FindArgs),
}

/// `sop list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Files of procedures (YAML, JSON) and folders of such files; `builtin` are those that come with the executable
    #[arg(value_name = "PATH", default_value = "builtin")]
    pub path: Vec<String>,
    /// Prints one JSON object with all that they say instead of lines
    #[arg(long)]
    pub json: bool,
}

/// `sop find`
#[derive(Debug, Args)]
pub struct FindArgs {
    /// The question
    pub question: String,
    /// Files and folders of procedures, or `builtin`; may be given several times [sop.path]
    #[arg(long, value_name = "PATH", default_value = "builtin")]
    pub path: Vec<String>,
    /// Only of this category; may be given several times [sop.categories]
    #[arg(long, value_name = "NAME")]
    pub category: Vec<String>,
    /// Most procedures [sop.max_procedures]
    #[arg(short = 'k', long, default_value_t = SopSection::default().max_procedures, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub max_procedures: u32,
    /// Most tokens that they take [sop.max_procedure_tokens]
    #[arg(long, value_name = "TOKENS", default_value_t = SopSection::default().max_procedure_tokens)]
    pub max_procedure_tokens: u32,
    /// How well a procedure must fit, 0 to 1 [sop.min_score]
    #[arg(long, default_value_t = SopSection::default().min_score)]
    pub min_score: f64,
    /// The model whose tokens are counted: folder, GGUF file, owner/name on the hub, `embedded` or `embedded:search`
    #[arg(long, default_value = folgore_config::model::EMBEDDED_SEARCH)]
    pub model: String,
    /// Prints one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}
