//! Which tensors a model has to have: checked against the headers before anything is read.

use super::fault;
use crate::{ModelConfig, ModelError, TensorSource, decoder::Linear};

/// Names and shapes of all weights of the Llama family.
pub(crate) fn expected(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let mut list = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden])];
    for layer in 0..config.num_hidden_layers {
        list.push((format!("model.layers.{layer}.input_layernorm.weight"), vec![hidden]));
        list.push((format!("model.layers.{layer}.post_attention_layernorm.weight"), vec![hidden]));
        for linear in Linear::ALL {
            let (out, inner) = linear.shape(config);
            list.push((format!("{}.weight", linear.module(layer)), vec![out, inner]));
        }
    }
    list.push(("model.norm.weight".into(), vec![hidden]));
    if !config.tie_word_embeddings {
        list.push(("lm_head.weight".into(), vec![config.vocab_size, hidden]));
    }
    list
}

/// Refuses a source that lacks a tensor, has one of another shape, or has one that the decoder would leave out.
pub(crate) fn check(place: &str, config: &ModelConfig, source: &dyn TensorSource) -> Result<(), ModelError> {
    let expected = expected(config);
    for (name, shape) in &expected {
        let found = source.shape(name).ok_or_else(|| fault::missing(place, format!("tensor {name}")))?;
        if found != *shape {
            return Err(fault::invalid(place, format!("shape of {name}"), format!("{shape:?}"), format!("{found:?}")));
        }
    }
    let known: std::collections::HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    // old checkpoints carry the rotary frequencies, and tied ones may repeat the head: both are computed or shared here
    let harmless = |name: &str| name.ends_with("rotary_emb.inv_freq") || name == "lm_head.weight";
    match source.names().into_iter().find(|name| !known.contains(name.as_str()) && !harmless(name)) {
        None => Ok(()),
        Some(name) if name.ends_with(".bias") => {
            Err(fault::unsupported(place, format!("bias {name}"), "only models without biases are served"))
        }
        Some(name) => Err(fault::unsupported(place, format!("tensor {name}"), "the llama family has no such weight")),
    }
}
