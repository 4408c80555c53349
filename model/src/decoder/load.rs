//! Reads the weights that a shape asks for.

use crate::{
    HostData, ModelConfig, ModelError, NormForm, TensorSource,
    backend::{Backend, MatrixData},
    decoder::{LayerWeights, Linear, Norm, Weights},
};

/// Reads every tensor of the model, with its shape checked.
pub(super) fn load<B: Backend>(
    backend: &B,
    config: &ModelConfig,
    source: &dyn TensorSource,
) -> Result<Weights<B>, ModelError> {
    let hidden = config.hidden_size;
    let vector =
        |name: String, width: usize| -> Result<Vec<f32>, ModelError> { Ok(checked(source, &name, &[width])?.to_f32()) };
    let norm = |name: String, width: usize| -> Result<B::Buf, ModelError> {
        let mut weight = vector(name, width)?;
        if config.variant.norm_form == NormForm::OnePlusWeight {
            weight.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(backend.upload(&weight))
    };
    let matrix = |name: String, out: usize, inner: usize| -> Result<B::Matrix, ModelError> {
        if let Some(coded) = source.coded(&name)? {
            check_shape(&name, &[out, inner], source.shape(&name).as_deref())?;
            return Ok(backend.matrix(MatrixData::Coded(&coded), out, inner));
        }
        let tensor = checked(source, &name, &[out, inner])?;
        let data = match &tensor.data {
            HostData::F32(values) => MatrixData::F32(values),
            HostData::Bf16(bits) => MatrixData::Bf16(bits),
            HostData::U8(_) => {
                let hint = ": weights have to be numbers".into();
                let what = format!("tensor {name} of {}", tensor.data.kind());
                return Err(ModelError::Unsupported { place: "weights".into(), what, hint });
            }
        };
        Ok(backend.matrix(data, out, inner))
    };
    let layer = |i: usize| -> Result<LayerWeights<B>, ModelError> {
        let linear = |l: Linear| {
            let (out, inner) = l.shape(config);
            matrix(format!("{}.weight", l.module(i)), out, inner)
        };
        let [q, k, v, o, gate, up, down] = Linear::ALL.map(linear);
        let bias = |l: Linear| -> Result<Option<B::Buf>, ModelError> {
            let read = || vector(format!("{}.bias", l.module(i)), l.shape(config).0);
            config.has_bias(l).then(read).transpose().map(|bias| bias.map(|b| backend.upload(&b)))
        };
        let mut biases = [const { None }; 7];
        for (slot, l) in biases.iter_mut().zip(Linear::ALL) {
            *slot = bias(l)?;
        }
        let norm = |n: Norm| norm(format!("model.layers.{i}.{}.weight", n.path(config)), n.width(config));
        let maybe = |n: Norm| Norm::of(config).contains(&n).then(|| norm(n)).transpose();
        Ok(LayerWeights {
            attention_norm: norm(Norm::Attention)?,
            feed_forward_norm: norm(Norm::FeedForward)?,
            attention_output_norm: maybe(Norm::AttentionOutput)?,
            feed_forward_output_norm: maybe(Norm::FeedForwardOutput)?,
            q_norm: maybe(Norm::Q)?,
            k_norm: maybe(Norm::K)?,
            linears: [q?, k?, v?, o?, gate?, up?, down?],
            biases,
        })
    };
    Ok(Weights {
        embed_tokens: matrix("model.embed_tokens.weight".into(), config.vocab_size, hidden)?,
        layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
        norm: norm("model.norm.weight".into(), hidden)?,
        lm_head: match config.tie_word_embeddings {
            true => None,
            false => Some(matrix("lm_head.weight".into(), config.vocab_size, hidden)?),
        },
    })
}

fn checked(source: &dyn TensorSource, name: &str, shape: &[usize]) -> Result<crate::HostTensor, ModelError> {
    let tensor = source.tensor(name)?;
    check_shape(name, shape, Some(&tensor.shape))?;
    Ok(tensor)
}

fn check_shape(name: &str, expected: &[usize], got: Option<&[usize]>) -> Result<(), ModelError> {
    if got == Some(expected) {
        return Ok(());
    }
    Err(ModelError::Invalid {
        place: "model weights".into(),
        what: format!("shape of {name}"),
        expected: format!("{expected:?} (from config.json)"),
        got: format!("{:?}", got.unwrap_or_default()),
    })
}
