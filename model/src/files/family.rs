//! Which tensors a model has to have: checked against the headers before anything is read.

use super::fault;
use crate::{ModelConfig, ModelError, TensorSource, decoder::tensors};

/// Refuses a source that lacks a tensor, has one of another shape, or has one that the decoder would leave out.
pub(crate) fn check(place: &str, config: &ModelConfig, source: &dyn TensorSource) -> Result<(), ModelError> {
    let expected = tensors(config);
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
            Err(fault::unsupported(place, format!("bias {name}"), "config.json does not ask for it"))
        }
        Some(name) => {
            let hint = format!("the {} family has no such weight", config.model_type);
            Err(fault::unsupported(place, format!("tensor {name}"), &hint))
        }
    }
}
