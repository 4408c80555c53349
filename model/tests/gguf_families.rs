//! GGUF files of every family (`tests/parity/make_gguf.py`).

mod common;

use std::sync::Arc;

use common::{fixture, ids, json};
use folgore_model::{
    ModelConfig, RopeScaling, Tensors,
    backend::Cpu,
    decoder::{Decoder, Ragged},
    files::{self, ModelFiles, gguf::Block, safetensors},
};

/// GGUF file, the folder that it was made of.
const FILES: [(&str, &str); 5] = [
    ("gguf-llama3", "tiny-llama3"),
    ("gguf-mistral", "tiny-mistral"),
    ("gguf-qwen2", "tiny-qwen2-yarn"),
    ("gguf-qwen3", "tiny-qwen3"),
    ("gguf-gemma3", "tiny-gemma3"),
];

fn open(gguf: &str) -> ModelFiles {
    files::open(&fixture(gguf).join("tiny.gguf")).unwrap()
}

fn weights(model: &ModelFiles) -> Tensors {
    model.tensors.names().into_iter().map(|name| (name.clone(), model.tensors.tensor(&name).unwrap())).collect()
}

/// The same weights in the same layout: matrices as `block` codes them, vectors but for the last bit.
fn assert_weights(got: &Tensors, want: &Tensors, block: Block) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, want) in want {
        let (got, original) = (&got[name], want.to_f32());
        assert_eq!(got.shape, want.shape, "{name}");
        let coded = if want.shape.len() == 2 { block } else { Block::F32 };
        let want = coded.decode(&coded.encode(&original).unwrap());
        let worst = got.to_f32().iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
        assert!(worst <= if name.ends_with("norm.weight") { 1e-6 } else { 0.0 }, "{name}: {worst}");
    }
}

/// What GGUF says in other words, or not at all.
fn alike(mut config: ModelConfig, like: &ModelConfig) -> ModelConfig {
    config.eos_token_ids.clone_from(&like.eos_token_ids);
    config.model_type.clone_from(&like.model_type);
    if let RopeScaling::Factors(_) = like.variant.rope_scaling {
        config.variant.rope_scaling = like.variant.rope_scaling.clone();
    }
    config
}

#[test]
fn shape_and_weights_of_every_family_are_those_of_the_checkpoint() {
    for (gguf, folder) in FILES {
        let (got, want) = (open(gguf), files::open(&fixture(folder)).unwrap());
        assert_weights(&weights(&got), &weights(&want), Block::F16);
        let mut expected = alike(want.config, &got.config);
        if folder == "tiny-gemma3" {
            // what make_gguf.py changes
            expected.variant.attention_scale = Some(0.25);
            expected.variant.local.as_mut().unwrap().layers = vec![true; 4];
        }
        assert_eq!(got.config, expected, "{gguf}");
    }
    let RopeScaling::Factors(factors) = open("gguf-llama3").config.variant.rope_scaling else { panic!() };
    assert!(factors.iter().all(|f| *f >= 1.0) && factors.iter().any(|f| *f > 1.0), "{factors:?}");
}

#[test]
fn logits_of_every_family_equal_those_of_transformers() {
    for (gguf, _) in FILES {
        let model = open(gguf);
        let decoder = Decoder::load(Arc::new(Cpu::new()), model.config, &*model.tensors).unwrap();
        let expected = safetensors::read(&fixture(gguf).join("logits.safetensors")).unwrap();
        for (i, row) in json(&format!("{gguf}/expected.json"))["rows"].as_array().unwrap().iter().enumerate() {
            let got = decoder.logits(&decoder.forward_only(&Ragged::whole(&[&ids(row)]), None));
            let want = expected[&format!("logits.{i}")].to_f32();
            assert_eq!(got.len(), want.len());
            let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{gguf}, row {i}: largest difference {worst}");
        }
    }
}
