//! What a GGUF file calls the tensors of a checkpoint, and how it lays out their values.

use super::metadata::Architecture;
use crate::{
    ModelConfig,
    decoder::{Linear, Norm},
};

/// How the file's values become those of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Layout {
    /// They are the same.
    AsIs,
    /// The rows of each of so many heads lie interleaved, for rotation of neighbours; in the checkpoint the halves follow each
    /// other.
    Interleaved {
        /// Number of heads.
        heads: usize,
    },
    /// The file holds one more than the checkpoint.
    OnePlus,
}

/// Where a GGUF file has what the checkpoint calls `name` (`model.layers.0.self_attn.q_proj.weight`), for a model of shape
/// `config`. None for a name that the model does not have, or where no architecture of GGUF is like it.
pub(crate) fn place(config: &ModelConfig, name: &str) -> Option<(String, Layout)> {
    let architecture = Architecture::of(config)?;
    let norm = if architecture == Architecture::Gemma3 { Layout::OnePlus } else { Layout::AsIs };
    match name {
        "model.embed_tokens.weight" => return Some(("token_embd.weight".into(), Layout::AsIs)),
        "model.norm.weight" => return Some(("output_norm.weight".into(), norm)),
        "lm_head.weight" => return Some(("output.weight".into(), Layout::AsIs)),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (module, kind) = rest.rsplit_once('.')?;
    let norms = Norm::of(config).into_iter().find(|n| n.path(config) == module && kind == "weight");
    let (part, layout) = match norms {
        Some(found) => (norm_name(found), norm),
        None => {
            let linear = Linear::ALL.into_iter().find(|linear| linear.path() == module)?;
            let turned = architecture == Architecture::Llama;
            (linear_name(linear), if turned { interleaved(linear, config) } else { Layout::AsIs })
        }
    };
    Some((format!("blk.{layer}.{part}.{kind}"), layout))
}

/// The layout of `linear` in a file of the architecture `llama`.
fn interleaved(linear: Linear, config: &ModelConfig) -> Layout {
    match linear {
        Linear::QProj => Layout::Interleaved { heads: config.num_attention_heads },
        Linear::KProj => Layout::Interleaved { heads: config.num_key_value_heads },
        _ => Layout::AsIs,
    }
}

pub(super) fn linear_name(linear: Linear) -> &'static str {
    match linear {
        Linear::QProj => "attn_q",
        Linear::KProj => "attn_k",
        Linear::VProj => "attn_v",
        Linear::OProj => "attn_output",
        Linear::GateProj => "ffn_gate",
        Linear::UpProj => "ffn_up",
        Linear::DownProj => "ffn_down",
    }
}

fn norm_name(norm: Norm) -> &'static str {
    match norm {
        Norm::Attention => "attn_norm",
        Norm::FeedForward => "ffn_norm",
        Norm::AttentionOutput => "post_attention_norm",
        Norm::FeedForwardOutput => "post_ffw_norm",
        Norm::Q => "attn_q_norm",
        Norm::K => "attn_k_norm",
    }
}

impl Layout {
    /// The checkpoint's values from those of the file, `rows` rows of them.
    pub(crate) fn read(self, values: Vec<f32>, rows: usize) -> Vec<f32> {
        match self {
            Self::OnePlus => values.into_iter().map(|x| x - 1.0).collect(),
            Self::AsIs | Self::Interleaved { .. } => self.ordered(values, rows),
        }
    }

    /// What a file holds of `rows` rows, in the order of the checkpoint's rows.
    pub(crate) fn ordered<T: Copy>(self, values: Vec<T>, rows: usize) -> Vec<T> {
        match self {
            Self::AsIs | Self::OnePlus => values,
            Self::Interleaved { heads } => {
                reordered(&values, heads, rows, |row, half| 2 * (row % half.max(1)) + row / half.max(1))
            }
        }
    }

    /// The file's values from those of the checkpoint: the inverse of [`Layout::read`].
    pub(crate) fn write(self, values: Vec<f32>, rows: usize) -> Vec<f32> {
        match self {
            Self::AsIs => values,
            Self::OnePlus => values.into_iter().map(|x| x + 1.0).collect(),
            Self::Interleaved { heads } => reordered(&values, heads, rows, |row, half| row % 2 * half + row / 2),
        }
    }
}

/// The rows of each head in another order: `from` says of a row, and of half their number, which one goes there. Row `2 j + t` of
/// a head in a file is row `t * half + j` of the checkpoint (t is 0 or 1).
fn reordered<T: Copy>(values: &[T], heads: usize, rows: usize, from: impl Fn(usize, usize) -> usize) -> Vec<T> {
    let width = values.len() / rows.max(1);
    let head_dim = rows / heads.max(1);
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for row in 0..head_dim {
            let source = head * head_dim + from(row, head_dim / 2);
            out.extend_from_slice(&values[source * width..(source + 1) * width]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_read_and_written() {
        // two heads of six rows, one number a row; the file holds rows 0 3 1 4 2 5 of each head
        let file: Vec<f32> = [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11].map(|row| row as f32).into();
        let checkpoint: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let interleaved = Layout::Interleaved { heads: 2 };
        assert_eq!(interleaved.read(file.clone(), 12), checkpoint);
        assert_eq!(interleaved.write(checkpoint, 12), file);
        assert_eq!(Layout::OnePlus.read(vec![1.25, 0.0], 2), [0.25, -1.0]);
        assert_eq!(Layout::OnePlus.write(vec![0.25, -1.0], 2), [1.25, 0.0]);
    }
}
