//! Policies written for others and read back, and adapters by PEFT beyond one rank for all (`tests/parity/make_adapters.py`).

mod common;

use std::{path::Path, sync::Arc};

use common::{fixture, ids, json};
use folgore_model::{
    ModelConfig, RopeScaling, TensorSource, Tensors,
    backend::Cpu,
    decoder::{Backprop, Decoder, Ragged, tensors},
    export::{self, Merged, Precision, Quant},
    files::{self, ModelFiles, gguf::Block, peft::AdapterFile, safetensors},
    lora::Adapter,
    params::Params,
};

fn base(name: &str) -> ModelFiles {
    files::open(&fixture(name)).unwrap()
}

/// An adapter of `base`, as one on the unchanged base.
fn adapter(folder: &str, base: &ModelFiles) -> AdapterFile {
    let file = AdapterFile::read(&fixture(folder)).unwrap();
    file.validate(folder, &base.config).unwrap();
    let file = file.on_unchanged_base(folder, &*base.tensors, base.config.num_hidden_layers).unwrap();
    file.validate(folder, &base.config).unwrap();
    file
}

fn rows() -> Vec<Vec<u32>> {
    json("adapters/rows.json")["rows"].as_array().unwrap().iter().map(ids).collect()
}

/// Largest difference between the logits of `weights` (with `adapter`) and those in `folder`.
fn off(folder: &str, config: &ModelConfig, weights: &dyn TensorSource, adapter: Option<&AdapterFile>) -> f32 {
    let decoder = Decoder::load(Arc::new(Cpu::new()), config.clone(), weights).unwrap();
    let device = adapter.map(|f| Adapter::load(&**decoder.backend(), config, &f.config.shape(), &f.tensors).unwrap());
    let expected = safetensors::read(&fixture(folder).join("logits.safetensors")).unwrap();
    let mut worst = 0.0f32;
    for (i, row) in rows().iter().enumerate() {
        let got = decoder.logits(&decoder.forward_only(&Ragged::whole(&[row]), device.as_ref()));
        let want = expected[&format!("logits.{i}")].to_f32();
        assert_eq!(got.len(), want.len());
        worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(worst, f32::max);
    }
    worst
}

#[test]
fn adapters_of_all_kinds_compute_what_peft_computes() {
    let base = base("tiny-tied");
    for name in ["patterns", "layers", "dora", "pissa", "pissa-converted", "olora"] {
        let folder = format!("adapters/{name}");
        let file = adapter(&folder, &base);
        let merged = Merged::new(&*base.tensors, &base.config, Some(&file)).unwrap();
        // PEFT decomposes, and takes the part out of its base, in f32
        let tolerance = if matches!(name, "pissa" | "pissa-converted" | "olora") { 1e-3 } else { 1e-4 };
        let worst = off(&folder, &base.config, &merged, None);
        assert!(worst < tolerance, "{name}, merged: {worst}");
        if name != "dora" {
            let worst = off(&folder, &base.config, &*base.tensors, Some(&file));
            assert!(worst < tolerance, "{name}, beside its base: {worst}");
        }
        // and none of them is nothing
        assert!(off(&folder, &base.config, &*base.tensors, None) > 1e-2, "{name}");
        let out = tempfile::tempdir().unwrap();
        file.write(out.path()).unwrap();
        assert_eq!(AdapterFile::read(out.path()).unwrap(), file, "{name}");
    }
    // DoRA cannot run beside its base here, and says so
    let file = adapter("adapters/dora", &base);
    let decoder = Decoder::load(Arc::new(Cpu::new()), base.config.clone(), &*base.tensors).unwrap();
    let error = Adapter::load(&**decoder.backend(), &base.config, &file.config.shape(), &file.tensors).err().unwrap();
    assert!(error.to_string().contains("lora_magnitude_vector"), "{error}");
}

#[test]
fn gradients_follow_the_rules_of_ranks_and_layers() {
    let base = base("tiny-tied");
    for name in ["patterns", "layers"] {
        let folder = format!("adapters/{name}");
        let file = adapter(&folder, &base);
        let decoder = Decoder::load(Arc::new(Cpu::new()), base.config.clone(), &*base.tensors).unwrap();
        let backend = decoder.backend().clone();
        let device = Adapter::load(&*backend, &base.config, &file.config.shape(), &file.tensors).unwrap();
        let mut params = Params::lora_from(&*backend, &base.config, file.config.shape(), &file.tensors).unwrap();
        let (rows, mut loss) = (rows(), 0.0);
        let count = rows.iter().map(|row| row.len() - 1).sum::<usize>() as f32;
        for row in rows.iter().filter(|row| row.len() > 1) {
            let tape = decoder.forward_train(Ragged::whole(&[row]), Some(&device), Backprop::default());
            let targets: Vec<u32> = row[1..].iter().copied().chain([0]).collect();
            let head = decoder.logprobs(tape.hidden(), &targets, 1.0);
            let mut d = vec![-1.0 / count; row.len()];
            d[row.len() - 1] = 0.0;
            loss -= head.logprobs[..row.len() - 1].iter().sum::<f32>() / count;
            decoder.backward(tape, Some(&device), &targets, 1.0, &head.lse, &d, &mut params);
        }
        let want = json(&format!("{folder}/gradients.json"))["loss"].as_f64().unwrap() as f32;
        assert!((loss - want).abs() < 1e-4, "{name}: {loss} and {want}");
        let expected = safetensors::read(&fixture(&folder).join("gradients.safetensors")).unwrap();
        let got = params.grads(&*backend);
        assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (tensor, want) in expected {
            let (got, want) = (got[&tensor].to_f32(), want.to_f32());
            let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
            let error = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
            assert!(error < 1e-4, "{name}, {tensor}: {error}");
        }
    }
}

/// Largest root mean square of the difference of a tensor, relative to the tensor.
fn error(source: &dyn TensorSource, written: &dyn TensorSource, config: &ModelConfig) -> f64 {
    let of = |name: &str| {
        let (a, b) = (source.tensor(name).unwrap(), written.tensor(name).unwrap());
        assert_eq!(a.shape, b.shape, "{name}");
        let (a, b) = (a.to_f32(), b.to_f32());
        let square = |v: f32| f64::from(v) * f64::from(v);
        let (off, all) =
            a.iter().zip(&b).fold((0.0, 0.0), |(off, all), (a, b)| (off + square(a - b), all + square(*a)));
        (off / all).sqrt()
    };
    tensors(config).iter().map(|(name, _)| of(name)).fold(0.0, f64::max)
}

fn policy() -> (ModelFiles, AdapterFile) {
    let base = base("tiny-tied");
    let file = adapter("adapter-tied-rslora", &base);
    (base, file)
}

#[test]
fn a_merged_folder_is_the_policy_and_keeps_the_bases_files() {
    let (base, file) = policy();
    let merged = Merged::new(&*base.tensors, &base.config, Some(&file)).unwrap();
    for (precision, shard, files, bound) in
        [(Precision::F32, 1 << 30, 1, 0.0), (Precision::F16, 12_000, 5, 6e-4), (Precision::Bf16, 12_000, 5, 4e-3)]
    {
        let out = tempfile::tempdir().unwrap();
        let from = fixture("tiny-tied");
        let names =
            export::write_folder(out.path(), &merged, &base.config, &base.tokenizer, Some(&from), precision, shard)
                .unwrap();
        let weights = names.iter().filter(|name| name.ends_with(".safetensors")).count();
        assert!(weights >= files, "{names:?}");
        let read = files::open(out.path()).unwrap();
        assert_eq!(read.config, base.config);
        let error = error(&merged, &*read.tensors, &base.config);
        assert!(error <= bound, "{precision:?}: {error}");
        if precision == Precision::F32 {
            assert!(off("adapter-tied-rslora", &base.config, &*read.tensors, None) < 1e-4);
        }
        for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"] {
            let bytes = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
            assert_eq!(bytes(out.path()), bytes(&from), "{name}");
        }
    }
}

#[test]
fn a_gguf_is_the_policy_in_every_coding() {
    let (base, file) = policy();
    let merged = Merged::new(&*base.tensors, &base.config, Some(&file)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |quant: Quant| {
        let path = folder.path().join(quant.name());
        export::write_gguf(&path, &merged, &base.config, &base.tokenizer, None, "tiny", quant).unwrap();
        files::open(&path).unwrap()
    };
    for (quant, bound) in [
        (Quant::F32, 0.0),
        (Quant::F16, 6e-4),
        (Quant::Bf16, 4e-3),
        (Quant::Q8_0, 0.01),
        (Quant::Q4_0, 0.12),
        (Quant::Q4KM, 0.12),
    ] {
        let read = write(quant);
        let error = error(&merged, &*read.tensors, &base.config);
        assert!(error <= bound, "{}: {error}", quant.name());
        assert_eq!(read.tokenizer.chat_template(), base.tokenizer.chat_template());
        assert_eq!(read.tokenizer.added_tokens(), base.tokenizer.added_tokens());
        assert_eq!(read.config.eos_token_ids.iter().max(), base.config.eos_token_ids.iter().max());
    }
    assert!(off("adapter-tied-rslora", &base.config, &*write(Quant::F32).tensors, None) < 1e-4);
}

/// `tiny` as GGUF in F32, read again; `change` is made to its shape before.
fn through_gguf(tiny: &str, change: impl Fn(&mut ModelConfig)) -> Result<(ModelConfig, ModelFiles), String> {
    let mut base = base(tiny);
    change(&mut base.config);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    export::write_gguf(&path, &*base.tensors, &base.config, &base.tokenizer, None, "m", Quant::F32)
        .map_err(|e| e.to_string())?;
    let read = files::open(&path).unwrap();
    assert!(error(&*base.tensors, &*read.tensors, &base.config) < 1e-6, "{tiny}");
    Ok((export::as_gguf(&base.config, &base.tokenizer), read))
}

/// What llama.cpp has for Gemma, whatever a file says.
fn like_gemma(config: &mut ModelConfig) {
    config.variant.attention_scale = Some(1.0 / (config.head_dim as f32).sqrt());
    config.variant.local.as_mut().unwrap().layers = vec![true; config.num_hidden_layers];
}

/// YaRN as llama.cpp has it.
fn usual_ramp(config: &mut ModelConfig) {
    if let RopeScaling::Yarn { beta_fast, .. } = &mut config.variant.rope_scaling {
        *beta_fast = 32.0;
    }
}

#[test]
fn a_gguf_of_every_family_has_its_shape() {
    let same = |_: &mut ModelConfig| ();
    for (tiny, change) in [
        ("tiny-tied", &same as &dyn Fn(&mut ModelConfig)),
        ("tiny-untied", &same),
        ("tiny-llama3", &same),
        ("tiny-llama-linear", &same),
        ("tiny-qwen2", &|config| config.variant.local = None),
        ("tiny-qwen2-yarn", &usual_ramp),
        ("tiny-qwen2-yarn", &|config| {
            usual_ramp(config);
            if let RopeScaling::Yarn { attention_factor, .. } = &mut config.variant.rope_scaling {
                *attention_factor = 1.0;
            }
        }),
        ("tiny-qwen3", &|config| config.variant.local = None),
        ("tiny-gemma3", &like_gemma),
        ("tiny-gemma3", &|config| {
            like_gemma(config);
            // as trained in bf16
            config.variant.embedding_scale = Some(5.65625);
        }),
    ] {
        let (expected, read) = through_gguf(tiny, change).unwrap();
        assert_eq!(export::differences(&expected, &read.config), [""; 0], "{tiny}");
    }
    assert_eq!(through_gguf("tiny-llama3", same).unwrap().0.variant.rope_scaling, {
        base("gguf-llama3/tiny.gguf").config.variant.rope_scaling
    });
}

#[test]
fn what_llama_cpp_has_no_words_for_is_refused_by_name() {
    use folgore_model::decoder::Linear;
    for (tiny, change, said) in [
        ("tiny-mistral", &(|_: &mut ModelConfig| ()) as &dyn Fn(&mut ModelConfig), "a sliding window in \"mistral\""),
        (
            "tiny-gemma3",
            &|config| {
                like_gemma(config);
                config.variant.attention_scale = Some(0.5);
            },
            "variant.attention_scale: expected 0.5, got 0.25",
        ),
        ("tiny-gemma3", &|config| config.variant.attention_scale = Some(0.25), "variant.local.layers"),
        ("tiny-qwen2-yarn", &|_| (), "rope_scaling yarn of 4 to 1 turns"),
        (
            "tiny-qwen2-yarn",
            &|config| {
                usual_ramp(config);
                if let RopeScaling::Yarn { truncate, .. } = &mut config.variant.rope_scaling {
                    *truncate = false;
                }
            },
            "truncate: false",
        ),
        (
            "tiny-qwen2-yarn",
            &|config| config.variant.rope_scaling = RopeScaling::Factors(vec![2.0; 8]),
            "rope_scaling llama3",
        ),
        (
            "tiny-qwen3",
            &|config| {
                config.variant.local = None;
                config.variant.biases = vec![Linear::QProj];
            },
            "biases on q_proj",
        ),
    ] {
        let error = through_gguf(tiny, change).err().unwrap();
        assert!(error.contains(said), "{tiny}: {error}");
    }
}

#[test]
fn a_type_that_changes_the_shape_is_refused_by_name() {
    let from = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "model.safetensors", "config.json"] {
        std::fs::copy(fixture("tiny-gemma3").join(name), from.path().join(name)).unwrap();
    }
    let config = from.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap().replace("\"float32\"", "\"bfloat16\"");
    std::fs::write(&config, text).unwrap();
    let base = files::open(from.path()).unwrap();
    let write = |precision: Precision| {
        let out = tempfile::tempdir().unwrap();
        let (tensors, tokenizer) = (&*base.tensors, &base.tokenizer);
        export::write_folder(out.path(), tensors, &base.config, tokenizer, Some(from.path()), precision, 1 << 30)
            .map(|_| files::open(out.path()).unwrap().config)
            .map_err(|e| e.to_string())
    };
    assert_eq!(write(Precision::Bf16), Ok(base.config.clone()));
    let error = write(Precision::F32).unwrap_err();
    assert!(error.contains("dtype float32 beside variant.embedding_scale: expected 5.65625"), "{error}");
}

#[test]
fn an_adapter_of_alpha_zero_adds_nothing_in_gguf_either() {
    let (base, mut file) = policy();
    file.config.lora_alpha = 0.0;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    export::write_adapter_gguf(&path, &file, &base.config, "a", Block::F32).unwrap();
    let read = export::read_adapter_gguf(&path, &base.config).unwrap();
    assert!(read.config.lora_alpha > 0.0, "llama.cpp takes 0 for a scale of 1");
    let merged = Merged::new(&*base.tensors, &base.config, Some(&read)).unwrap();
    assert_eq!(error(&*base.tensors, &merged, &base.config), 0.0);
}

#[test]
fn a_gguf_of_a_gguf_keeps_its_metadata() {
    let base = base("tiny-gguf/tiny.gguf");
    let folder = tempfile::tempdir().unwrap();
    let (path, from) = (folder.path().join("again.gguf"), fixture("tiny-gguf/tiny.gguf"));
    export::write_gguf(&path, &*base.tensors, &base.config, &base.tokenizer, Some(&from), "again", Quant::F32).unwrap();
    let again = files::open(&path).unwrap();
    assert_eq!((&again.config, again.tokenizer.digest()), (&base.config, base.tokenizer.digest()));
    assert_eq!(error(&*base.tensors, &*again.tensors, &base.config), 0.0);
}

#[test]
fn an_adapter_goes_through_gguf_unharmed() {
    let base = base("tiny-tied");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    for name in ["adapter-tied-rslora", "adapters/patterns", "adapters/layers", "adapters/olora"] {
        let file = adapter(name, &base);
        export::write_adapter_gguf(&path, &file, &base.config, "a", Block::F32).unwrap();
        let read = export::read_adapter_gguf(&path, &base.config).unwrap();
        read.validate("adapter.gguf", &base.config).unwrap();
        let worst = off(name, &base.config, &*base.tensors, Some(&read));
        assert!(worst < if name.ends_with("olora") { 1e-3 } else { 1e-4 }, "{name}: {worst}");
    }
    let dora = adapter("adapters/dora", &base);
    let error = export::write_adapter_gguf(&path, &dora, &base.config, "a", Block::F32).unwrap_err().to_string();
    assert!(error.contains("use_dora in GGUF"), "{error}");
    // a file of another kind
    let whole = export::read_adapter_gguf(&fixture("tiny-gguf/tiny.gguf"), &base.config).unwrap_err().to_string();
    assert!(whole.contains("general.type: expected adapter"), "{whole}");
}

#[test]
fn a_config_made_from_a_gguf_says_the_same() {
    let base = base("tiny-gguf/tiny.gguf");
    let out = tempfile::tempdir().unwrap();
    export::write_folder(out.path(), &*base.tensors, &base.config, &base.tokenizer, None, Precision::F32, 1 << 30)
        .unwrap();
    let read = files::open(out.path()).unwrap();
    assert_eq!((&read.config, read.tokenizer.eos_ids()), (&base.config, base.tokenizer.eos_ids()));
    assert_eq!(error(&*base.tensors, &*read.tensors, &base.config), 0.0);
    let all: Tensors = Tensors::new();
    assert!(Merged::new(&all, &read.config, None).unwrap().tensor("model.norm.weight").is_err());
}
