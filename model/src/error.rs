//! What can be wrong with a model, its files and its input.

/// Errors of this crate; each names the thing, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Something is not where it has to be.
    #[error("{place}: {what} is missing")]
    Missing {
        /// What is missing.
        what: String,
        /// The file or folder.
        place: String,
    },
    /// A file or a field of it is not as it has to be.
    #[error("{place}: {what}: expected {expected}, got {got}")]
    Invalid {
        /// The file.
        place: String,
        /// The field, tensor or key.
        what: String,
        /// What would be right.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A feature of the file that this version does not serve; the text says what to do.
    #[error("{place}: {what} is not supported{hint}")]
    Unsupported {
        /// The file.
        place: String,
        /// The feature, with its value.
        what: String,
        /// The way out, starting with `: ` or empty.
        hint: String,
    },
    /// A chat template failed or went past a limit.
    #[error("chat template: {0}")]
    Template(String),
    /// The tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// More tokens than the model's context holds.
    #[error("{what} has {got} tokens, the model's context holds {limit}")]
    Context {
        /// Which input.
        what: String,
        /// Its length.
        got: usize,
        /// The limit.
        limit: usize,
    },
}
