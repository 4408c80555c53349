//! Files by strangers: what lies is refused before memory is taken for it, with file and field named.

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{copy, fixture};
use folgore_model::{
    HostTensor,
    files::{
        self,
        gguf::{self, Block, Field, Plan},
        peft::AdapterFile,
        safetensors,
    },
    tokenizer::Tokenizer,
};
use serde_json::json;

fn refused(path: &Path) -> String {
    match files::open(path) {
        Err(error) => error.to_string(),
        Ok(model) => {
            let read = model.tensors.names().into_iter().find_map(|name| model.tensors.tensor(&name).err());
            read.expect("it was taken").to_string()
        }
    }
}

/// `tiny-tied` with a file changed.
fn with_file(name: &str, content: &[u8]) -> String {
    let folder = copy("tiny-tied");
    fs::write(folder.path().join(name), content).unwrap();
    let error = refused(folder.path());
    assert!(error.contains(name), "{name} is not named: {error}");
    error
}

fn with_header(header: &str, data: usize) -> String {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    with_file("model.safetensors", &bytes)
}

#[test]
fn safetensors_headers_that_lie() {
    let entry = |name: &str, shape: &str, range: &str| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":{range}}}"#)
    };
    let object = |entries: &[String]| format!("{{{}}}", entries.join(","));
    for (header, data, field) in [
        (object(&[entry("a", "[2]", "[0,8]"), entry("b", "[1]", "[4,8]")]), 8, "header"),
        (object(&[entry("a", "[1]", "[0,4]"), entry("b", "[1]", "[8,12]")]), 12, "header"),
        (object(&[entry("a", "[1]", "[4,0]")]), 4, "header"),
        (object(&[entry("a", "[9223372036854775807,4]", "[0,4]")]), 4, "header"),
        (object(&[entry("a", "[1]", "[0,4]")]), 3, "bytes of data"),
        (object(&[entry("a", "[1]", "[0,4]"), entry("a", "[1]", "[0,4]")]), 4, "tensor a: expected one entry, got two"),
        (format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)), 0, "header"),
        (format!(r#"{{"a":{}1{}}}"#, "[".repeat(5000), "]".repeat(5000)), 0, "header"),
        ("{}".into(), 0, "model.embed_tokens.weight is missing"),
    ] {
        let error = with_header(&header, data);
        assert!(error.contains(field), "{error}");
    }
}

/// A file of `len` bytes that takes no room: `head`, then zeros.
fn sparse(path: &Path, head: &[u8], len: u64) {
    fs::write(path, head).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn headers_above_the_limit_are_refused_by_their_length_alone() {
    let folder = copy("tiny-tied");
    let path = folder.path().join("model.safetensors");
    sparse(&path, &100_000_001u64.to_le_bytes(), 200_000_000);
    let error = refused(folder.path());
    assert!(error.contains("model.safetensors: length of the header: expected at most 100000000 bytes"), "{error}");
    let adapter = copy("adapter-tied-rslora");
    let path = adapter.path().join("adapter_model.safetensors");
    sparse(&path, &(2u64 << 20).to_le_bytes(), 8 << 20);
    let error = AdapterFile::read(adapter.path()).unwrap_err().to_string();
    assert!(error.contains("length of the header"), "{error}");
}

#[test]
fn texts_above_their_limit_are_refused_by_their_length_alone() {
    for (name, limit) in [("config.json", 1u64 << 20), ("tokenizer.json", 64 << 20)] {
        let folder = copy("tiny-tied");
        sparse(&folder.path().join(name), b"{", limit + 1);
        let error = refused(folder.path());
        assert!(error.contains(name) && error.contains("size: expected at most"), "{error}");
    }
}

#[test]
fn json_that_is_nested_or_of_another_kind() {
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let deep_object = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        for content in [deep.as_str(), &deep_object, "[]", "\u{feff}{}", "{", "\0"] {
            assert!(with_file(name, content.as_bytes()).contains("a JSON object"), "{name}");
        }
        assert!(with_file(name, b"\xff\xfe").contains("UTF-8"), "{name}");
    }
}

#[test]
fn an_index_does_not_lead_out_of_its_folder() {
    for file in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""] {
        let folder = copy("tiny-tied-bf16-sharded");
        let index = json!({"weight_map": {"model.norm.weight": file}});
        fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let error = refused(folder.path());
        assert!(error.contains("file of model.norm.weight: expected a file name without a folder"), "{error}");
    }
    let index = |value: serde_json::Value| {
        let folder = copy("tiny-tied-bf16-sharded");
        fs::write(folder.path().join("model.safetensors.index.json"), value.to_string()).unwrap();
        refused(folder.path())
    };
    assert!(index(json!({"weight_map": {"model.norm.weight": "config.json"}})).contains("config.json"));
    assert!(index(json!({"weight_map": {"nothing": "model-00001-of-00004.safetensors"}})).contains("tensor nothing"));
    assert!(index(json!({"weight_map": {}})).contains("is missing"));
    assert!(index(json!({"weight_map": []})).contains("weight_map"));
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_and_links_are_followed() {
    use std::os::unix::{fs::symlink, net::UnixListener};
    let folder = copy("tiny-tied");
    let path = folder.path().join("model.safetensors");
    let away = tempfile::tempdir().unwrap();
    fs::rename(&path, away.path().join("blob")).unwrap();
    // as in the shared cache of Hugging Face
    symlink(away.path().join("blob"), &path).unwrap();
    assert!(files::open(folder.path()).is_ok());
    for target in ["/dev/zero", "/dev/random"] {
        fs::remove_file(&path).unwrap();
        symlink(target, &path).unwrap();
        let error = refused(folder.path());
        assert!(
            error.contains("model.safetensors: path: expected a file, got a pipe, a socket or a device"),
            "{error}"
        );
    }
    let socket = away.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert!(refused(&socket).contains("expected a file"));
    fs::remove_file(&path).unwrap();
    symlink(&path, &path).unwrap();
    assert!(!refused(folder.path()).is_empty());
}

#[test]
fn numbers_that_are_none() {
    for bad in [f32::NAN, f32::INFINITY] {
        let folder = copy("tiny-tied");
        let path = folder.path().join("model.safetensors");
        let mut tensors = safetensors::read(&path).unwrap();
        let name = "model.layers.1.mlp.up_proj.weight";
        let mut values = tensors[name].to_f32();
        values[77] = bad;
        tensors.insert(name.into(), HostTensor::f32(tensors[name].shape.clone(), values));
        safetensors::write(&path, &tensors).unwrap();
        let error = refused(folder.path());
        assert!(error.contains(&format!("tensor {name}: expected finite numbers")), "{error}");
    }
    // the scale of the first Q8_0 block of a GGUF file
    let mut bytes = fs::read(fixture("tiny-gguf/tiny.gguf")).unwrap();
    let at = bytes.len() - 4 * 32 * 4;
    for place in (at - 4000..at).step_by(2) {
        bytes[place..place + 2].copy_from_slice(&[0x00, 0x7e]);
    }
    let model = gguf::from_bytes("nan.gguf", bytes).unwrap();
    let error =
        model.tensors.names().into_iter().find_map(|name| model.tensors.tensor(&name).err()).unwrap().to_string();
    assert!(error.starts_with("nan.gguf: tensor model.layers.") && error.contains("finite numbers"), "{error}");
}

#[test]
fn matrices_in_4_bits_that_lie() {
    for (from, to, expected) in [
        ("\"blocksize\": 64", "\"blocksize\": 63", "blocksize 63"),
        ("\"nested_blocksize\": 256", "\"nested_blocksize\": 255", "nested_blocksize"),
        ("\"shape\": [48, 112]", "\"shape\": [48, 113]", "shape of model.layers.0.mlp.down_proj.weight"),
        ("\"shape\": [48, 112]", "\"shape\": [4.8,112]", "the JSON text of bitsandbytes"),
        ("\"nested_offset\": 0", "\"nested_offsex\": 0", "nested_offset of model.layers.0.mlp.down_proj.weight"),
        ("down_proj.weight.absmax", "down_proj.weight.absmin", "tensor model.layers.0.mlp.down_proj.weight.absmin"),
        ("down_proj.weight.quant_map", "down_proj.weight.quant_mad", "down_proj.weight.quant_mad"),
    ] {
        let folder = copy("tiny-untied-nf4");
        let path = folder.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, bytes).unwrap();
        let opened = files::open(folder.path());
        let read = opened.and_then(|files| files.tensors.tensor("model.layers.0.mlp.down_proj.weight"));
        let error = read.expect_err(to).to_string();
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn gguf_files_that_lie() {
    let small = |fields: &[(String, Field)], plans: &[Plan]| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        gguf::write(&path, fields, plans, |plan| Ok(vec![0.0; plan.shape.iter().product()])).unwrap();
        fs::read(path).unwrap()
    };
    let error = |bytes: Vec<u8>| gguf::from_bytes("a.gguf", bytes).unwrap_err().to_string();
    let plan = |name: &str| Plan { name: name.into(), shape: vec![32], block: Block::F32 };
    let field = |key: &str, value: Field| (key.to_owned(), value);
    let architecture = field("general.architecture", "llama".into());
    for alignment in [0, u32::MAX] {
        let bytes = small(&[field("general.alignment", Field::U32(alignment))], &[]);
        assert!(error(bytes).contains("general.alignment: expected 1 to 1048576"));
    }
    // the same name, or the same place, for two tensors
    let two = small(std::slice::from_ref(&architecture), &[plan("tensor.a"), plan("tensor.b")]);
    let second = two.windows(8).rposition(|w| w == b"tensor.b").unwrap();
    let mut same_name = two.clone();
    same_name[second + 7] = b'a';
    assert!(error(same_name).contains("tensor tensor.a: expected one entry, got two"));
    let edit = |offset: usize, value: u64| {
        let mut bytes = two.clone();
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        error(bytes)
    };
    // after the name: four bytes of axes, eight of size, four of type, eight of place
    let (size, place) = (second + 8 + 4, second + 8 + 4 + 8 + 4);
    assert!(edit(place, u64::MAX).contains("offset of tensor.b"));
    assert!(edit(size, 1 << 40).contains("shape of tensor.b"));
    assert!(edit(second - 8, u64::MAX).contains("length of name of a tensor"));
    // lists of lists, without end
    let mut nested = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0k\x09\0\0\0".to_vec();
    for _ in 0..1000 {
        nested.extend([9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert!(error(nested).contains("k: expected lists nested at most 4 deep"));
    let shapes = [("llama.block_count", u32::MAX), ("llama.embedding_length", 0), ("llama.attention.head_count", 0)];
    for (key, value) in shapes {
        let full = ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"];
        let mut fields: BTreeMap<String, Field> = full.iter().map(|k| (format!("llama.{k}"), Field::U32(4))).collect();
        fields.insert("llama.attention.layer_norm_rms_epsilon".into(), Field::F32(1e-5));
        fields.insert("general.architecture".into(), "llama".into());
        fields.insert(key.into(), Field::U32(value));
        let bytes = small(
            &Vec::from_iter(fields),
            &[Plan { name: "token_embd.weight".into(), shape: vec![8, 4], block: Block::F32 }],
        );
        let error = error(bytes);
        assert!(error.starts_with("a.gguf: "), "{error}");
        assert!(error.contains("at most") || error.contains("at least 1") || error.contains("head_dim"), "{error}");
    }
}

#[test]
fn tokenizers_that_lie() {
    let base: serde_json::Value = common::json("tiny-tied/tokenizer.json");
    for (pointer, value) in [
        ("/model/type", json!("Nothing")),
        ("/model/merges", json!([["no such", "token"]])),
        ("/model/vocab", json!([])),
        ("/added_tokens", json!([{"id": -1}])),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
        ),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
    ] {
        let mut document = base.clone();
        *document.pointer_mut(pointer).unwrap() = value;
        let error = Tokenizer::from_json("t.json", &document.to_string(), "{}", None).unwrap_err().to_string();
        assert!(error.contains("t.json"), "{pointer}: {error}");
    }
}
