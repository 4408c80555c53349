//! Model folders, GGUF files and adapters that other software wrote, and broken ones.

mod common;

use std::{fs, path::Path, sync::Arc};

use common::{copy, fixture, ids, json};
use folgore_model::{
    HostData, HostTensor, Tensors,
    backend::Cpu,
    decoder::{Decoder, Ragged},
    files::{self, ModelFiles, peft::AdapterFile, safetensors},
    lora::LoraInit,
};
use proptest::prelude::*;

fn error(path: &Path) -> String {
    files::open(path).unwrap_err().to_string()
}

fn weights(model: &ModelFiles) -> Tensors {
    model.tensors.names().into_iter().map(|name| (name.clone(), model.tensors.tensor(&name).unwrap())).collect()
}

#[test]
fn a_folder_by_transformers_is_read_whole() {
    let model = files::open(&fixture("tiny-untied")).unwrap();
    let c = &model.config;
    assert_eq!((c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers), (300, 48, 112, 2));
    assert_eq!((c.num_attention_heads, c.num_key_value_heads, c.head_dim), (6, 2, 8));
    assert_eq!((c.rms_norm_eps, c.rope_theta, c.tie_word_embeddings), (1e-5, 1e4, false));
    assert_eq!((c.eos_token_ids.as_slice(), c.bos_token_id), ([2, 0].as_slice(), Some(1)));
    assert_eq!(weights(&model).len(), 2 * 9 + 3);
    assert_eq!(model.tensors.shape("lm_head.weight"), Some(vec![300, 48]));
    assert_eq!(model.tokenizer.vocab_size(), 300);
    let tied = files::open(&fixture("tiny-tied")).unwrap();
    assert!(tied.config.tie_word_embeddings && tied.config.head_dim == 16 && tied.config.rope_theta == 1e5);
}

#[test]
fn shards_hold_the_rounded_weights_and_one_identity() {
    let whole = files::open(&fixture("tiny-tied")).unwrap();
    let sharded = files::open(&fixture("tiny-tied-bf16-sharded")).unwrap();
    assert_eq!(whole.tensors.names(), sharded.tensors.names());
    for (name, tensor) in weights(&whole) {
        let rounded: Vec<u16> = tensor.to_f32().iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect();
        assert_eq!(sharded.tensors.tensor(&name).unwrap().data, HostData::Bf16(rounded), "{name}");
    }
    assert_ne!(whole.digest, sharded.digest);
    let folder = copy("tiny-tied-bf16-sharded");
    fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
    safetensors::write(&folder.path().join("model.safetensors"), &weights(&sharded)).unwrap();
    let joined = files::open(folder.path()).unwrap();
    assert_eq!(joined.digest, sharded.digest);
    assert_eq!(weights(&joined), weights(&sharded));
}

#[test]
fn a_model_in_memory_is_the_model_in_the_folder() {
    let path = fixture("tiny-untied");
    let text = |name: &str| fs::read_to_string(path.join(name)).unwrap();
    let memory = ModelFiles::from_memory(
        "embedded",
        fs::read(path.join("model.safetensors")).unwrap(),
        &text("config.json"),
        &text("tokenizer.json"),
        &text("tokenizer_config.json"),
        &text("chat_template.jinja"),
    )
    .unwrap();
    let folder = files::open(&path).unwrap();
    assert_eq!(weights(&memory), weights(&folder));
    assert_eq!(memory.tokenizer.digest(), folder.tokenizer.digest());
}

#[test]
fn what_is_missing_is_named() {
    assert!(error(Path::new("/nowhere/model")).contains("/nowhere/model"));
    let folder = copy("tiny-tied-bf16-sharded");
    fs::remove_file(folder.path().join("model-00002-of-00004.safetensors")).unwrap();
    assert!(error(folder.path()).contains("shard model-00002-of-00004.safetensors is missing"));
    for (file, text) in [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("model.safetensors", "model.safetensors (or model.safetensors.index.json) is missing"),
    ] {
        let folder = copy("tiny-tied");
        fs::remove_file(folder.path().join(file)).unwrap();
        assert!(error(folder.path()).contains(text), "{}", error(folder.path()));
    }
    let adapter = error(&fixture("adapter-untied"));
    assert!(adapter.contains("this folder is an adapter"), "{adapter}");
}

#[test]
fn pickles_are_refused_with_the_way_out() {
    let folder = copy("tiny-tied");
    fs::rename(folder.path().join("model.safetensors"), folder.path().join("pytorch_model.bin")).unwrap();
    for path in [folder.path().to_owned(), folder.path().join("pytorch_model.bin")] {
        let error = error(&path);
        assert!(error.contains("a pickle file is not supported") && error.contains("safetensors"), "{error}");
    }
}

/// Opens `tiny-tied` with its weights changed.
fn with_weights(change: impl FnOnce(&mut Tensors)) -> String {
    let folder = copy("tiny-tied");
    let path = folder.path().join("model.safetensors");
    let mut tensors = safetensors::read(&path).unwrap();
    change(&mut tensors);
    safetensors::write(&path, &tensors).unwrap();
    error(folder.path())
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    let norm = "model.layers.1.input_layernorm.weight";
    let missing = with_weights(|t| drop(t.remove(norm)));
    assert!(missing.contains(&format!("tensor {norm} is missing")), "{missing}");
    let shape = with_weights(|t| drop(t.insert(norm.into(), HostTensor::f32([31], vec![0.0; 31]))));
    assert!(shape.contains(norm) && shape.contains("[32]") && shape.contains("[31]"), "{shape}");
    let bias = "model.layers.0.self_attn.q_proj.bias";
    let biased = with_weights(|t| drop(t.insert(bias.into(), HostTensor::f32([64], vec![0.0; 64]))));
    assert!(biased.contains(&format!("bias {bias} is not supported")), "{biased}");
    let extra = with_weights(|t| {
        drop(t.insert("model.layers.0.self_attn.q_norm.weight".into(), HostTensor::f32([1], vec![0.0])))
    });
    assert!(extra.contains("q_norm"), "{extra}");
}

#[test]
fn a_foreign_tokenizer_is_refused_with_both_numbers() {
    let folder = copy("tiny-tied");
    let path = folder.path().join("tokenizer.json");
    let mut json = json("tiny-tied/tokenizer.json");
    for id in 300..310 {
        json["model"]["vocab"][format!("extra{id}")] = id.into();
    }
    fs::write(&path, json.to_string()).unwrap();
    let error = error(folder.path());
    assert!(error.contains("300 ids") && error.contains("310 ids"), "{error}");
}

#[test]
fn an_added_token_without_a_row_is_no_foreign_tokenizer() {
    let folder = copy("tiny-tied");
    let mut json = json("tiny-tied/tokenizer.json");
    json["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({"id": 300, "content": "<picture>",
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}));
    fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let model = files::open(folder.path()).unwrap();
    assert_eq!((model.config.vocab_size, model.tokenizer.vocab_size()), (300, 301));
}

#[test]
fn gguf_blocks_names_and_rows_are_those_of_the_checkpoint() {
    let gguf = files::open(&fixture("tiny-gguf/tiny.gguf")).unwrap();
    let folder = files::open(&fixture("tiny-tied")).unwrap();
    assert_eq!(folder.config.eos_token_ids, [2, 0]);
    let mut config = folder.config.clone();
    config.eos_token_ids = vec![2];
    assert_eq!(gguf.config, config);
    assert_eq!(gguf.tensors.names(), folder.tensors.names());
    let mut codes = std::collections::BTreeSet::new();
    for (name, tensor) in weights(&folder) {
        let (want, got) = (tensor.to_f32(), gguf.tensors.tensor(&name).unwrap().to_f32());
        let worst = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        // half a step of four bits over the widest block; the norms are not quantised
        let limit = if name.contains("norm") { 0.0 } else { largest / 7.0 };
        assert!(worst <= limit, "{name}: {worst} of {largest}");
        // the codes, which a backend works on, are of the same numbers, in the order of the checkpoint's rows
        if let Some(coded) = gguf.tensors.coded(&name).unwrap() {
            assert_eq!(coded.decoded(), got, "{name}");
            codes.insert(name.rsplit('.').nth(1).unwrap().to_owned());
        }
    }
    assert!(["q_proj", "k_proj", "up_proj", "embed_tokens"].iter().all(|name| codes.contains(*name)), "{codes:?}");
    let text = "the cat sat 123 <|im_end|>\n é🙂";
    assert_eq!(gguf.tokenizer.encode_untrusted(text).unwrap(), folder.tokenizer.encode_untrusted(text).unwrap());
    assert_eq!(gguf.tokenizer.encode_trusted(text).unwrap(), folder.tokenizer.encode_trusted(text).unwrap());
    assert_eq!(gguf.tokenizer.chat_template(), folder.tokenizer.chat_template());
}

#[test]
fn logits_of_a_gguf_file_equal_those_of_transformers() {
    let model = files::open(&fixture("tiny-gguf/tiny.gguf")).unwrap();
    let decoder = Decoder::load(Arc::new(Cpu::new()), model.config, &*model.tensors).unwrap();
    let expected = safetensors::read(&fixture("tiny-gguf/logits.safetensors")).unwrap();
    for (i, row) in json("tiny-gguf/expected.json")["rows"].as_array().unwrap().iter().enumerate() {
        let got = decoder.logits(&decoder.forward_only(&Ragged::whole(&[&ids(row)]), None));
        let want = expected[&format!("logits.{i}")].to_f32();
        assert_eq!(got.len(), want.len());
        let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "row {i}: largest difference {worst}");
    }
}

fn patched(find: &[u8], replace: &[u8]) -> String {
    assert_eq!(find.len(), replace.len());
    let mut bytes = fs::read(fixture("tiny-gguf/tiny.gguf")).unwrap();
    let at = bytes.windows(find.len()).position(|w| w == find).unwrap();
    bytes[at..at + find.len()].copy_from_slice(replace);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    error(file.path())
}

#[test]
fn gguf_features_that_are_not_served_are_named() {
    assert!(patched(b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0").contains("GGUF version 1"));
    assert!(patched(b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03").contains("big-endian"));
    assert!(patched(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba").contains("\"mamba\""));
    assert!(patched(b"\x05\0\0\0\0\0\0\0gpt-2", b"\x05\0\0\0\0\0\0\0gpt-9").contains("\"gpt-9\""));
    // the type of the first quantised tensor: name, two axes, sizes, type
    let name = b"blk.0.attn_q.weight\x02\0\0\0\x20\0\0\0\0\0\0\0\x40\0\0\0\0\0\0\0";
    let (q8, iq4) = ([name.as_slice(), &[8, 0, 0, 0]].concat(), [name.as_slice(), &[20, 0, 0, 0]].concat());
    let error = patched(&q8, &iq4);
    assert!(error.contains("blk.0.attn_q.weight of type IQ4_NL") && error.contains("Q2_K to Q6_K"), "{error}");
    assert!(patched(b"output_norm", b"output_nOrm").contains("model.norm.weight is missing"));
}

#[test]
fn lying_gguf_counts_are_refused_before_memory_is_taken() {
    let bytes = fs::read(fixture("tiny-gguf/tiny.gguf")).unwrap();
    let try_open = |bytes: &[u8]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        error(file.path())
    };
    for (at, what) in [(8, "number of tensors"), (16, "number of metadata entries"), (24, "length of key")] {
        for count in [1u64 << 32, u64::MAX] {
            let mut bytes = bytes.clone();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            assert!(try_open(&bytes).contains(what), "{}", try_open(&bytes));
        }
    }
    assert!(try_open(&bytes[..bytes.len() - 100]).contains("end of"));
    assert!(try_open(b"GGUF").contains("end of the file"));
    assert!(try_open(b"").contains("a Hugging Face folder or a GGUF file"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn damaged_gguf_files_never_panic(at in 0usize..9000, value: u8, cut in 1usize..60_000) {
        let mut bytes = fs::read(fixture("tiny-gguf/tiny.gguf")).unwrap();
        bytes[at] = value;
        bytes.truncate(cut.max(at + 1));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        if let Ok(model) = files::open(file.path()) {
            let _ = weights(&model);
        }
    }
}

#[test]
fn adapters_by_peft_are_read_and_written_alike() {
    for (folder, base, targets, scale) in
        [("adapter-untied", "tiny-untied", 7, 2.5), ("adapter-tied-rslora", "tiny-tied", 2, 2.0)]
    {
        let path = fixture(folder);
        let adapter = AdapterFile::read(&path).unwrap();
        let model = files::open(&fixture(base)).unwrap();
        adapter.validate(folder, &model.config).unwrap();
        let shape = adapter.config.shape();
        assert_eq!((shape.targets.len(), shape.scale()), (targets, scale));
        assert_eq!(adapter.tensors.len(), targets * 2 * 2);
        assert!(adapter.tensors.contains_key("model.layers.0.self_attn.q_proj.lora_A"));
        let mut again = files::peft::LoraConfig::from_shape(&shape, LoraInit::Kaiming);
        again.init_lora_weights = adapter.config.init_lora_weights;
        assert_eq!(again, adapter.config);
        let out = tempfile::tempdir().unwrap();
        adapter.write(out.path()).unwrap();
        let file = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).unwrap();
        assert_eq!(
            safetensors::from_bytes("a", file(out.path())).unwrap(),
            safetensors::from_bytes("b", file(&path)).unwrap()
        );
        let config = |folder: &Path| -> serde_json::Map<String, serde_json::Value> {
            serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
        };
        let theirs = config(&path);
        for (key, value) in config(out.path()) {
            let (mut ours, mut theirs) = (value, theirs[&key].clone());
            for list in [&mut ours, &mut theirs].into_iter().filter_map(|v| v.as_array_mut()) {
                list.sort_by_key(|v| v.to_string());
            }
            assert_eq!(ours, theirs, "{key}");
        }
        let wrong = files::open(&fixture(if base == "tiny-tied" { "tiny-untied" } else { "tiny-tied" })).unwrap();
        assert!(
            adapter
                .validate(folder, &wrong.config)
                .unwrap_err()
                .to_string()
                .contains("is it an adapter of this base model?")
        );
    }
}
