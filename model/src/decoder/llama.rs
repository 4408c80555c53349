//! The Llama family (SmolLM2, TinyLlama, Llama 2): which tensors it has, and its rotary angles.

use crate::{
    HostData, ModelConfig, ModelError, TensorSource,
    backend::{Backend, MatrixData},
    decoder::{LayerWeights, Linear, Weights},
};

/// Reads every tensor of the family, with its shape checked.
pub(super) fn load<B: Backend>(
    backend: &B,
    config: &ModelConfig,
    source: &dyn TensorSource,
) -> Result<Weights<B>, ModelError> {
    let hidden = config.hidden_size;
    let vector = |name: String| -> Result<B::Buf, ModelError> {
        let tensor = checked(source, &name, &[hidden])?;
        Ok(backend.upload(&tensor.to_f32()))
    };
    let matrix = |name: String, out: usize, inner: usize| -> Result<B::Matrix, ModelError> {
        let tensor = checked(source, &name, &[out, inner])?;
        let data = match &tensor.data {
            HostData::F32(values) => MatrixData::F32(values),
            HostData::Bf16(bits) => MatrixData::Bf16(bits),
        };
        Ok(backend.matrix(data, out, inner))
    };
    let layer = |i: usize| -> Result<LayerWeights<B>, ModelError> {
        let linear = |l: Linear| {
            let (out, inner) = l.shape(config);
            matrix(format!("{}.weight", l.module(i)), out, inner)
        };
        let [q, k, v, o, gate, up, down] = Linear::ALL.map(linear);
        Ok(LayerWeights {
            input_layernorm: vector(format!("model.layers.{i}.input_layernorm.weight"))?,
            post_attention_layernorm: vector(format!("model.layers.{i}.post_attention_layernorm.weight"))?,
            linears: [q?, k?, v?, o?, gate?, up?, down?],
        })
    };
    Ok(Weights {
        embed_tokens: matrix("model.embed_tokens.weight".into(), config.vocab_size, hidden)?,
        layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
        norm: vector("model.norm.weight".into())?,
        lm_head: match config.tie_word_embeddings {
            true => None,
            false => Some(matrix("lm_head.weight".into(), config.vocab_size, hidden)?),
        },
    })
}

/// Rotary table [max_position_embeddings, head_dim]: cosines of the first half, then sines. Angles in f64, since a position
/// of some thousands times a frequency near 1 loses the fraction in f32.
pub(super) fn rope_table(config: &ModelConfig) -> Vec<f32> {
    let half = config.head_dim / 2;
    let frequency = |i: usize| f64::from(config.rope_theta).powf(-2.0 * i as f64 / config.head_dim as f64);
    let mut table = Vec::with_capacity(config.max_position_embeddings * config.head_dim);
    for position in 0..config.max_position_embeddings {
        let angle = |i: usize| position as f64 * frequency(i);
        table.extend((0..half).map(|i| angle(i).cos() as f32));
        table.extend((0..half).map(|i| angle(i).sin() as f32));
    }
    table
}

fn checked(source: &dyn TensorSource, name: &str, shape: &[usize]) -> Result<crate::HostTensor, ModelError> {
    let tensor = source.tensor(name)?;
    if tensor.shape == shape {
        return Ok(tensor);
    }
    Err(ModelError::Invalid {
        place: "model weights".into(),
        what: format!("shape of {name}"),
        expected: format!("{shape:?} (from config.json)"),
        got: format!("{:?}", tensor.shape),
    })
}
