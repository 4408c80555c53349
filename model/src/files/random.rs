//! A base of random weights in the shape of a known model: what a machine can hold, and how fast it is, do not depend on the numbers.
//!
//! Each tensor is drawn when it is asked for, so that a large base needs no second copy, neither in a file nor in memory.

use std::sync::Arc;

use folgore_protocol::{Digest, seed};
use half::bf16;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::ModelFiles;
use crate::{
    Footprint, HostData, HostTensor, ModelConfig, ModelError, TensorSource, Variant,
    decoder::{Linear, tensors},
    params::{at_first, place_of},
    tokenizer::Tokenizer,
};

/// What names of random bases begin with.
pub const PREFIX: &str = "random:";
/// The shapes that there are.
pub const SHAPES: [&str; 5] = ["tiny", "smollm2", "qwen2.5-0.5b", "qwen2.5-1.5b", "mistral-7b"];

/// Stream of the weights.
const SEED: u64 = 1;
/// Deviation of the weights.
const DEVIATION: f32 = 0.02;
/// Numbers that a thread draws at once.
const PIECE: usize = 1 << 16;

/// The shape called `name`; none if it is not one of [`SHAPES`].
pub fn shape(name: &str) -> Option<ModelConfig> {
    let smollm2 = ModelConfig::smollm2_135m();
    let qwen2 = ModelConfig {
        model_type: "qwen2".into(),
        vocab_size: 151_936,
        num_key_value_heads: 2,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        max_position_embeddings: 32_768,
        variant: Variant { biases: vec![Linear::QProj, Linear::KProj, Linear::VProj], ..Variant::default() },
        ..smollm2.clone()
    };
    let config = match name {
        "tiny" => ModelConfig {
            vocab_size: 512,
            hidden_size: 128,
            intermediate_size: 352,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 32,
            max_position_embeddings: 1_024,
            ..smollm2
        },
        "smollm2" => smollm2,
        "qwen2.5-0.5b" => ModelConfig {
            hidden_size: 896,
            intermediate_size: 4_864,
            num_hidden_layers: 24,
            num_attention_heads: 14,
            ..qwen2
        },
        "qwen2.5-1.5b" => ModelConfig {
            hidden_size: 1_536,
            intermediate_size: 8_960,
            num_hidden_layers: 28,
            num_attention_heads: 12,
            head_dim: 128,
            ..qwen2
        },
        "mistral-7b" => ModelConfig {
            model_type: "mistral".into(),
            vocab_size: 32_000,
            hidden_size: 4_096,
            intermediate_size: 14_336,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            head_dim: 128,
            rope_theta: 1e6,
            tie_word_embeddings: false,
            max_position_embeddings: 32_768,
            ..smollm2
        },
        _ => return None,
    };
    // nothing ends a generation, so that all are as long as they may be
    Some(ModelConfig { eos_token_ids: Vec::new(), bos_token_id: None, ..config })
}

/// The files of a random base in the shape `config`. Each of its tokens is a character of Unicode, from the
/// newline on.
///
/// # Errors
/// If the tokenizer is refused.
pub fn files(name: &str, config: ModelConfig) -> Result<ModelFiles, ModelError> {
    let tokenizer = Tokenizer::from_json(name, &tokenizer(config.vocab_size).to_string(), "{}", None)?;
    let digest = Digest::of(format!("{PREFIX}{SEED} {}", json!(config)).as_bytes());
    let tensors = Box::new(Drawn(config.clone()));
    Ok(ModelFiles { config, tensors, tokenizer: Arc::new(tokenizer), origin: name.to_owned(), digest })
}

/// One token a character, and one for all others.
fn tokenizer(vocabulary: usize) -> Value {
    let names = ["<unk>".to_owned()].into_iter().chain(('\n'..).map(String::from)).take(vocabulary);
    let vocab: Map<String, Value> = names.zip(0u32..).map(|(name, id)| (name, json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    })
}

/// The weights: nearly normal in matrices, 1 in norms, 0 in biases.
struct Drawn(ModelConfig);

impl TensorSource for Drawn {
    fn tensor(&self, name: &str) -> Result<HostTensor, ModelError> {
        let (place, shape) = place_of(&self.0, name)?;
        let mut values = vec![at_first(&self.0, name); shape.iter().product()];
        if shape.len() > 1 {
            let stream = seed::mix(&[SEED, place as u64]);
            values.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| draw(stream, (i * PIECE) as u64, piece));
        }
        Ok(HostTensor::f32(shape, values))
    }

    fn rounded(&self, name: &str) -> Result<HostTensor, ModelError> {
        let (place, shape) = place_of(&self.0, name)?;
        if shape.len() < 2 {
            return self.tensor(name);
        }
        let mut bits = vec![0; shape.iter().product()];
        let stream = seed::mix(&[SEED, place as u64]);
        bits.par_chunks_mut(PIECE).enumerate().for_each(|(i, bits)| {
            let mut values = vec![0.0; bits.len()];
            draw(stream, (i * PIECE) as u64, &mut values);
            bits.iter_mut().zip(values).for_each(|(bits, x)| *bits = bf16::from_f32(x).to_bits());
        });
        Ok(HostTensor { shape, data: HostData::Bf16(bits) })
    }

    fn footprint_rounded(&self, name: &str) -> Option<Footprint> {
        Some(Footprint::bf16(self.shape(name)?.iter().product()))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        tensors(&self.0).into_iter().find(|(n, _)| n == name).map(|(_, shape)| shape)
    }

    fn names(&self) -> Vec<String> {
        tensors(&self.0).into_iter().map(|(name, _)| name).collect()
    }
}

/// Sums of four bytes, two from each draw: near enough to normal, and a tenth of the time.
fn draw(stream: u64, first: u64, out: &mut [f32]) {
    // four uniform bytes have mean 510 and variance 4 (256^2 - 1) / 12
    let unit = DEVIATION / (65_535.0f32 / 3.0).sqrt();
    for (i, pair) in (first / 2..).zip(out.chunks_mut(2)) {
        let bits = seed::bits(stream, i);
        // sums of neighbouring bytes, in lanes of two bytes
        let two = (bits & 0x00ff_00ff_00ff_00ff) + (bits >> 8 & 0x00ff_00ff_00ff_00ff);
        let four = two + (two >> 16);
        for (x, sum) in pair.iter_mut().zip([four & 0xffff, four >> 32 & 0xffff]) {
            *x = (sum as f32 - 510.0) * unit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_weights_that_their_models_have() {
        let weights = |name: &str| -> usize {
            tensors(&shape(name).unwrap()).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
        };
        // tiny by hand; as the cards of SmolLM2-135M, Qwen2.5-0.5B, Qwen2.5-1.5B and Mistral-7B have them
        let known = [803_968, 134_515_008, 494_032_768, 1_543_714_304, 7_241_732_096];
        assert_eq!(SHAPES.map(weights), known);
        assert!(shape("gpt-5").is_none());
    }

    #[test]
    fn weights_are_drawn_alike_in_pieces_and_nearly_normal() {
        let config = ModelConfig { vocab_size: 700, num_hidden_layers: 1, ..shape("smollm2").unwrap() };
        let files = files("random:some", config).unwrap();
        let read = |name: &str| files.tensors.tensor(name).unwrap().into_f32();
        let values = read("model.embed_tokens.weight");
        let mut again = vec![0.0; 100];
        draw(seed::mix(&[SEED, 0]), PIECE as u64, &mut again);
        assert_eq!(values[PIECE..PIECE + 100], again);
        let n = values.len() as f64;
        let moment = |power: i32| values.iter().map(|x| f64::from(*x / DEVIATION).powi(power)).sum::<f64>() / n;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.01, "{} {}", moment(1), moment(2));
        // of a normal distribution 3, of four bytes 2.7
        assert!((moment(4) - 2.7).abs() < 0.05, "{}", moment(4));
        let rounded = files.tensors.rounded("model.embed_tokens.weight").unwrap();
        assert!(matches!(rounded.data, HostData::Bf16(_)));
        assert!(rounded.to_f32().iter().zip(&values).all(|(a, b)| *a == bf16::from_f32(*b).to_f32()));
        assert_ne!(values[..100], read("model.layers.0.self_attn.q_proj.weight")[..100]);
        assert!(read("model.norm.weight").iter().all(|x| *x == 1.0));
        assert!(files.tensors.tensor("nothing").is_err());
        assert_eq!(files.tokenizer.vocab_size(), 700);
        let ids = files.tokenizer.encode_trusted("a \n").unwrap();
        assert_eq!(files.tokenizer.decode(&[ids.as_slice(), &[699]].concat(), false).unwrap(), "a \n˄");
    }
}
