//! Texts to vectors.

pub(crate) mod bert;
mod hashed;
mod sentence;

use folgore_protocol::Digest;

pub use hashed::Hashed;
pub use sentence::Sentence;

/// Why texts got no vectors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("encoder {encoder}: {what}")]
pub struct EncodeError {
    /// Name of the encoder.
    pub encoder: String,
    /// What is wrong.
    pub what: String,
}

/// Makes a vector of length 1 of each text; of one in which nothing is to be seen, zeros.
pub trait Encoder: Send + Sync {
    /// Name, for logs and reports.
    fn name(&self) -> &str;

    /// Numbers of a vector.
    fn dim(&self) -> usize;

    /// Names what it computes: vectors of encoders with the same digest can be compared, others cannot.
    fn digest(&self) -> Digest;

    /// Tokens of a text that it looks at, its own special ones included; the rest is cut off.
    fn max_tokens(&self) -> usize;

    /// Tokens that a text is for it, special ones left out; what chunks are measured in.
    fn count_tokens(&self, text: &str) -> usize;

    /// Names what [`Encoder::count_tokens`] does: encoders of one tokenizer cut documents alike.
    fn counter(&self) -> String {
        self.digest().hex()
    }

    /// Tokens of a passage that it looks at, without what it adds itself.
    fn passage_tokens(&self) -> usize {
        self.max_tokens().saturating_sub(self.count_tokens(self.passage_prefix()))
    }

    /// What stands in front of every query, as the model was trained.
    fn query_prefix(&self) -> &str {
        ""
    }

    /// What stands in front of every passage.
    fn passage_prefix(&self) -> &str {
        ""
    }

    /// Encodes texts as they are, in order. However they are batched, a text's vector is the same but for rounding.
    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncodeError>;

    /// Encodes queries, with their prefix.
    fn encode_queries(&self, queries: &[&str]) -> Result<Vec<Vec<f32>>, EncodeError> {
        encode_with(self, self.query_prefix(), queries)
    }

    /// Encodes passages, with their prefix.
    fn encode_passages(&self, passages: &[&str]) -> Result<Vec<Vec<f32>>, EncodeError> {
        encode_with(self, self.passage_prefix(), passages)
    }
}

fn encode_with<E: Encoder + ?Sized>(encoder: &E, prefix: &str, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncodeError> {
    if prefix.is_empty() {
        return encoder.encode(texts);
    }
    let texts: Vec<String> = texts.iter().map(|text| format!("{prefix}{text}")).collect();
    encoder.encode(&texts.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Gives a vector the length 1, unless it is nothing but zeros.
pub(crate) fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}
