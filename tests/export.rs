//! `folgore export`: each kind is written and found to be the policy, and what was damaged afterwards is found not to be.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use folgore_model::{
    HostTensor, ModelError, TensorSource,
    export::{Quant, read_adapter_gguf, write_adapter_gguf, write_gguf},
    files::{self, gguf::Block, safetensors},
};
use serde_json::Value;
use support::{Ended, Running, folder, folgore, root};

fn fixture(name: &str) -> PathBuf {
    root().join("tests/parity/fixtures").join(name)
}

fn run(args: &[&str]) -> Ended {
    Running::start(folgore(args)).end()
}

/// Exports the adapter that PEFT made for `tiny-tied` into `out`.
fn export(out: &Path, args: &[&str]) -> Ended {
    let (base, adapter) = (fixture("tiny-tied"), fixture("adapter-tied-rslora"));
    let (base, adapter, out) = (base.display().to_string(), adapter.display().to_string(), out.display().to_string());
    run(&[&["export", &adapter, "--model", &base, "--out", &out, "--to"], args].concat())
}

fn check(out: &Path) -> Ended {
    run(&["export", "--check", &out.display().to_string()])
}

fn report(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("export.json")).unwrap()).unwrap()
}

/// The one line of a check that must fail.
#[track_caller]
fn complaint(out: &Path) -> String {
    let ended = check(out);
    assert!(!ended.status.success(), "damage was not seen: {}", ended.stdout);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    ended.stderr
}

#[test]
fn every_kind_is_written_and_is_the_policy() {
    let folder = folder();
    for (i, args) in [
        &["peft"][..],
        &["merged"],
        &["merged", "--dtype", "f16", "--max-shard-size", "12KB"],
        &["merged", "--dtype", "bf16"],
        &["gguf"],
        &["gguf", "--quant", "f32"],
        &["gguf", "--quant", "bf16"],
        &["gguf", "--quant", "q8_0"],
        &["gguf", "--quant", "q4_0"],
        &["gguf", "--quant", "q4_k_m"],
        &["gguf-adapter"],
        &["gguf-adapter", "--dtype", "f16"],
        &["ollama", "--quant", "q8_0"],
        &["ollama", "--apart"],
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(i.to_string());
        export(&out, args).well();
        let report = report(&out);
        let found = &report["verified"];
        assert_eq!(found["passed"], true, "{args:?}: {found}");
        assert!(found["adapter_effect"].as_f64().unwrap() > 0.5, "{args:?}: {found}");
        for name in report["files"].as_array().unwrap() {
            assert!(out.join(name["name"].as_str().unwrap()).exists(), "{args:?}: {name}");
        }
        if matches!(args, ["peft"] | ["merged"] | ["gguf-adapter"] | ["gguf", "--quant", "f32"]) {
            assert_eq!(found["first_difference"], Value::Null, "{args:?}: {found}");
        }
        check(&out).well();
    }
    // nothing is left of the making
    assert!(fs::read_dir(folder.path()).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().starts_with('.')));
    let shards = |name: &str| folder.path().join("2").join(name).exists();
    assert!(shards("model.safetensors.index.json") && !shards("model.safetensors"));
    let modelfile = fs::read_to_string(folder.path().join("13/Modelfile")).unwrap();
    assert!(modelfile.starts_with("FROM ./base-F16.gguf\nADAPTER ./adapter.gguf\nTEMPLATE \"\"\""), "{modelfile}");
    let card = fs::read_to_string(folder.path().join("1/README.md")).unwrap();
    assert!(card.contains("base_model: ") && card.contains("Is it the policy?"), "{card}");
}

/// Two tensors of one shape in each other's place.
struct Swapped(Box<dyn TensorSource + Send + Sync>);

impl TensorSource for Swapped {
    fn tensor(&self, name: &str) -> Result<HostTensor, ModelError> {
        let (gate, up) = ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight");
        self.0.tensor(if name == gate {
            up
        } else if name == up {
            gate
        } else {
            name
        })
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(name)
    }

    fn names(&self) -> Vec<String> {
        self.0.names()
    }
}

fn edit(path: &Path, from: &str, to: &str) {
    let bytes = fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
    fs::write(path, [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()).unwrap();
}

#[test]
fn a_damaged_folder_is_caught() {
    let folder = folder();
    let fresh = |name: &str, args: &[&str]| {
        let out = folder.path().join(name);
        export(&out, args).well();
        out
    };
    let out = fresh("swapped", &["merged"]);
    let path = out.join("model.safetensors");
    let mut tensors: BTreeMap<String, HostTensor> = safetensors::read(&path).unwrap();
    let (gate, up) = ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight");
    let (a, b) = (tensors[gate].clone(), tensors[up].clone());
    tensors.extend([(gate.to_owned(), b), (up.to_owned(), a)]);
    safetensors::write(&path, &tensors).unwrap();
    assert!(complaint(&out).contains("error of tensor model.layers.0.mlp"));

    // equal to the base: what users of other systems find too late
    fs::copy(fixture("tiny-tied/model.safetensors"), &path).unwrap();
    let said = complaint(&out);
    assert!(said.contains("share of the adapter in the weights: expected 1 ± 0.20, got 0.00"), "{said}");

    let out = fresh("template", &["merged"]);
    edit(&out.join("chat_template.jinja"), "assistant", "assistent");
    assert!(complaint(&out).contains("the chat template is another one"));

    let out = fresh("shards", &["merged", "--dtype", "f16", "--max-shard-size", "12KB"]);
    let shard =
        fs::read_dir(&out).unwrap().map(|e| e.unwrap().path()).find(|p| p.to_string_lossy().contains("-00002-of-"));
    let shard = shard.unwrap();
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 100]).unwrap();
    assert!(complaint(&out).contains("00002-of-"));

    let out = fresh("peft", &["peft"]);
    fs::remove_file(out.join("adapter_model.safetensors")).unwrap();
    assert!(complaint(&out).contains("adapter_model.safetensors is missing"));
    let config = out.join("adapter_config.json");
    fs::copy(fixture("adapter-tied-rslora/adapter_model.safetensors"), out.join("adapter_model.safetensors")).unwrap();
    check(&out).well();
    edit(&config, "\"lora_alpha\": 6", "\"lora_alpha\": 7");
    assert!(complaint(&out).contains("error of tensor"));
}

#[test]
fn a_changed_shape_vocabulary_or_side_file_is_caught() {
    let folder = folder();
    let out = folder.path().join("merged");
    export(&out, &["merged"]).well();
    for (name, from, to, said) in [
        // none of these shows in texts of a few tokens, or by far not as much as a coding may cost
        ("config.json", "\"rope_theta\": 100000.0", "\"rope_theta\": 100001.0", "shape: rope_theta: expected 100000"),
        ("config.json", "1e-05", "1.001e-05", "shape: rms_norm_eps: expected 0.00001, got 0.00001001"),
        (
            "config.json",
            "\"max_position_embeddings\": 128",
            "\"max_position_embeddings\": 100",
            "max_position_embeddings",
        ),
        ("config.json", "\"bos_token_id\": 1", "\"bos_token_id\": 4", "shape: bos_token_id: expected 1, got 4"),
        ("generation_config.json", "    2,\n    0", "    2,\n    5", "shape: eos_token_ids: expected [0,2], got [2,5]"),
        (
            "tokenizer.json",
            "\"<|\": 297,\n      \"ar\": 298",
            "\"<|\": 298,\n      \"ar\": 297",
            "token 297: expected Some(\"<|\"), got Some(\"ar\")",
        ),
        ("tokenizer.json", "\"lstrip\": false", "\"lstrip\": true", "added token 0: expected"),
        ("tokenizer.json", "\"special\": true", "\"special\": false", "added token 0: expected"),
        ("README.md", "Folgore", "folgore", "file README.md: expected sha256"),
        ("agent_config.yaml", "base_model", "other_model", "file agent_config.yaml: expected"),
    ] {
        let path = out.join(name);
        let whole = fs::read(&path).unwrap();
        edit(&path, from, to);
        let told = complaint(&out);
        assert!(told.contains(said), "{name}, {to}: {told}");
        fs::write(&path, whole).unwrap();
    }
    check(&out).well();
    fs::remove_file(out.join("README.md")).unwrap();
    assert!(complaint(&out).contains("file README.md: "));
}

/// A model with one tensor a hundredth larger.
struct Larger(Box<dyn TensorSource + Send + Sync>, &'static str);

impl TensorSource for Larger {
    fn tensor(&self, name: &str) -> Result<HostTensor, ModelError> {
        let tensor = self.0.tensor(name)?;
        let values = tensor.to_f32().iter().map(|w| if name == self.1 { w * 1.01 } else { *w }).collect();
        Ok(HostTensor::f32(tensor.shape, values))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(name)
    }

    fn names(&self) -> Vec<String> {
        self.0.names()
    }
}

#[test]
fn what_is_exact_beside_coarse_matrices_is_judged_as_exact() {
    let folder = folder();
    let out = folder.path().join("gguf");
    export(&out, &["gguf", "--quant", "q4_0"]).well();
    let path = out.join("adapter-tied-rslora-Q4_0.gguf");
    let model = files::open(&path).unwrap();
    let (config, tokenizer) = (model.config.clone(), model.tokenizer.clone());
    let (beside, norm) = (out.join("larger"), "model.layers.1.input_layernorm.weight");
    let larger = Larger(model.tensors, norm);
    write_gguf(&beside, &larger, &config, &tokenizer, Some(&path), "larger", Quant::Q4_0).unwrap();
    fs::rename(&beside, &path).unwrap();
    let said = complaint(&out);
    assert!(said.contains(&format!("error of tensor {norm}: expected at most 1.0e-6, got 1.00e-2")), "{said}");

    let out = folder.path().join("apart");
    export(&out, &["ollama", "--apart", "--quant", "q4_0"]).well();
    let path = out.join("adapter.gguf");
    let base = files::open(&fixture("tiny-tied")).unwrap();
    let mut adapter = read_adapter_gguf(&path, &base.config).unwrap();
    adapter.config.lora_alpha *= 1.01;
    write_adapter_gguf(&path, &adapter, &base.config, "a", Block::F32).unwrap();
    let said = complaint(&out);
    assert!(
        said.contains("error of tensor model.layers.") && said.contains("lora_B: expected at most 1.0e-6"),
        "{said}"
    );
}

#[test]
fn a_damaged_gguf_is_caught() {
    let folder = folder();
    let out = folder.path().join("gguf");
    export(&out, &["gguf", "--quant", "q4_0"]).well();
    let path = out.join("adapter-tied-rslora-Q4_0.gguf");
    let whole = fs::read(&path).unwrap();

    // even where numbers are coarse
    let model = files::open(&path).unwrap();
    let (config, tokenizer) = (model.config.clone(), model.tokenizer.clone());
    let beside = out.join("swapped");
    write_gguf(&beside, &Swapped(model.tensors), &config, &tokenizer, Some(&path), "swapped", Quant::Q4_0).unwrap();
    fs::rename(&beside, &path).unwrap();
    assert!(complaint(&out).contains("error of tensor model.layers.0.mlp"));

    fs::write(&path, &whole).unwrap();
    check(&out).well();
    edit(&path, "assistant", "assistent");
    assert!(complaint(&out).contains("the chat template is another one"));

    fs::write(&path, &whole[..whole.len() - 200]).unwrap();
    assert!(complaint(&out).contains("Q4_0.gguf"));

    let out = folder.path().join("ollama");
    export(&out, &["ollama", "--apart"]).well();
    edit(&out.join("Modelfile"), "ADAPTER ./adapter.gguf\n", "");
    assert!(complaint(&out).contains("Modelfile: expected \"ADAPTER ./adapter.gguf\""));
}

/// An adapter as real ones are: what it adds is less than what the coding loses.
#[test]
fn an_adapter_that_is_missing_is_caught_where_numbers_are_coarse() {
    let folder = folder();
    let adapter = folder.path().join("small");
    fs::create_dir(&adapter).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(fixture("adapter-tied-rslora").join(name), adapter.join(name)).unwrap();
    }
    edit(&adapter.join("adapter_config.json"), "\"lora_alpha\": 6", "\"lora_alpha\": 0.6");
    let out = folder.path().join("gguf");
    let path = |path: &Path| path.display().to_string();
    let (base, from, to) = (path(&fixture("tiny-tied")), path(&adapter), path(&out));
    run(&["export", &from, "--model", &base, "--out", &to, "--to", "gguf", "--quant", "q4_0"]).well();
    let kept = report(&out)["verified"]["adapter_kept"].as_f64().unwrap();
    assert!((kept - 1.0).abs() < 0.2, "{kept}");

    let gguf = out.join("small-Q4_0.gguf");
    let (trained, untrained) = (files::open(&gguf).unwrap(), files::open(&fixture("tiny-tied")).unwrap());
    let (config, tokenizer) = (trained.config.clone(), trained.tokenizer.clone());
    let beside = out.join("base");
    write_gguf(&beside, &*untrained.tensors, &config, &tokenizer, Some(&gguf), "small", Quant::Q4_0).unwrap();
    fs::rename(&beside, &gguf).unwrap();
    let said = complaint(&out);
    assert!(said.contains("share of the adapter in the weights"), "{said}");
}

#[test]
fn a_run_is_exported_from_its_newest_checkpoint() {
    let folder = folder();
    let place = folder.path().display().to_string();
    let train =
        ["train", "arithmetic", "--run-name", "r", "--output-dir", &place, "--max-steps", "2", "eval.eval_items=4"];
    run(&[&train[..], &["data.system_prompt=null", "lora.lora_r=4", "rollout.num_prompts=2"]].concat()).well();
    let agent = fs::read_to_string(folder.path().join("r/checkpoints/checkpoint-2/agent_config.yaml")).unwrap();
    assert!(agent.contains("temperature: 1") && agent.contains("chat_template_sha256: null"), "{agent}");
    let out = folder.path().join("merged");
    let to = |kind: &str, out: &Path| {
        run(&["export", "r", "--output-dir", &place, "--to", kind, "--out", &out.display().to_string()])
    };
    to("merged", &out).well();
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("| data | arithmetic |") && card.contains("# r-step-2"), "{card}");
    assert!(fs::read_to_string(out.join("agent_config.yaml")).unwrap().contains("base_model: embedded"));
    check(&out).well();
    // an export that fails leaves nothing, and a second one does not write over the first
    let there = || fs::read_dir(folder.path()).unwrap().count();
    let before = there();
    assert!(!to("gguf", &folder.path().join("gguf")).status.success());
    assert_eq!(there(), before);
    assert!(to("peft", &out).stderr.contains("expected a new or an empty folder"));
    // one token a character is a tokenizer that GGUF has no name for
    assert!(to("gguf", &folder.path().join("gguf")).stderr.contains("this pre-tokenizer in GGUF is not supported"));
    // the checkpoint is gone: the export can still be checked against another place that holds the same
    let kept = folder.path().join("kept");
    fs::rename(folder.path().join("r/checkpoints/checkpoint-2"), &kept).unwrap();
    assert!(complaint(&out).contains("name it before --check"));
    let (kept, out) = (kept.display().to_string(), out.display().to_string());
    run(&["export", &kept, "--check", &out]).well();
}

/// What is exported is the base that was trained on, in four bits, not that of its files.
#[test]
fn a_base_in_four_bits_is_exported_as_it_was_trained_on() {
    let folder = folder();
    let place = folder.path().display().to_string();
    let train =
        ["train", "arithmetic", "--run-name", "q", "--output-dir", &place, "--max-steps", "2", "eval.eval_items=4"];
    let four = ["model.load_in_4bit=true", "model.use_bnb_nested_quant=true", "rollout.num_prompts=2"];
    run(&[&train[..], &four].concat()).well();
    let to = |kind: &str, out: &str, more: &[&str]| {
        let out = folder.path().join(out).display().to_string();
        run(&[&["export", "--output-dir", &place, "--to", kind, "--out", &out], more].concat()).well().stdout
    };
    let merged = |out: &str, more: &[&str]| {
        to("merged", out, &[&["--dtype", "f32"], more].concat());
        safetensors::read(&folder.path().join(out).join("model.safetensors")).unwrap()
    };
    let trained = merged("trained", &["q"]);
    assert!(to("peft", "peft", &["q"]).contains("trained on the base in NF4 with nested scales"));
    // the checkpoint says so itself, wherever it lies
    let alone = folder.path().join("alone");
    fs::rename(folder.path().join("q/checkpoints/checkpoint-2"), &alone).unwrap();
    let adapter = alone.display().to_string();
    assert_eq!(merged("moved", &[&adapter, "--model", "embedded"]), trained);
    fs::remove_file(alone.join("agent_config.yaml")).unwrap();
    let whole = merged("whole", &[&adapter, "--model", "embedded"]);
    let (linear, head) = ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight");
    let values = |tensors: &BTreeMap<String, HostTensor>| tensors[linear].to_f32();
    let farthest = values(&trained).iter().zip(values(&whole)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let largest = values(&whole).iter().fold(0.0f32, |most, x| most.max(x.abs()));
    // half of the widest step between two codes, of the largest block, but for the adapter, which is the same in both
    assert!(farthest > 0.0 && farthest < 0.16 * largest, "{farthest} of {largest}");
    assert_eq!(trained[head], whole[head]);
}

/// Of a base that came in codes, numbers are written: its configuration must not say codes.
#[test]
fn a_base_of_bitsandbytes_is_exported_as_numbers() {
    let folder = folder();
    let place = folder.path().display().to_string();
    let base = fixture("tiny-untied-nf4").display().to_string();
    let adapter = fixture("adapter-untied").display().to_string();
    let out = folder.path().join("merged");
    let named = out.display().to_string();
    run(&["export", &adapter, "--output-dir", &place, "--model", &base, "--to", "merged", "--out", &named]).well();
    let config = fs::read_to_string(out.join("config.json")).unwrap();
    assert!(!config.contains("quantization_config"), "{config}");
    assert!(safetensors::read(&out.join("model.safetensors")).unwrap().keys().all(|name| !name.contains("absmax")));
}
