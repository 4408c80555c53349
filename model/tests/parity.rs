//! Against files that transformers and PEFT wrote (`tests/parity/make_fixtures.py`): logits, greedy tokens, loss and gradients.

use std::{path::PathBuf, sync::Arc};

use folgore_model::{
    Tensors,
    backend::{Cpu, SampleSpec},
    decoder::{Backprop, Decoder, Ragged, Span},
    files::{self, peft::AdapterFile, safetensors},
    lora::Adapter,
    params::Params,
};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/fixtures").join(name)
}

fn json(folder: &str, file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(folder).join(file)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn rows(expected: &Value, key: &str) -> Vec<Vec<u32>> {
    expected[key].as_array().unwrap().iter().map(ids).collect()
}

struct Model {
    decoder: Decoder<Cpu>,
    tensors: Tensors,
    adapter: Option<(AdapterFile, Adapter<Cpu>)>,
}

fn load(base: &str, adapter: Option<&str>) -> Model {
    let files = files::open(&fixture(base)).unwrap();
    let tensors: Tensors =
        files.tensors.names().into_iter().map(|n| (n.clone(), files.tensors.tensor(&n).unwrap())).collect();
    let decoder = Decoder::load(Arc::new(Cpu::new()), files.config, &tensors).unwrap();
    let adapter = adapter.map(|folder| {
        let file = AdapterFile::read(&fixture(folder)).unwrap();
        file.validate(folder, decoder.config()).unwrap();
        let device =
            Adapter::load(&**decoder.backend(), decoder.config(), &file.config.shape(), &file.tensors).unwrap();
        (file, device)
    });
    Model { decoder, tensors, adapter }
}

fn assert_logits(model: &Model, folder: &str, tolerance: f32) {
    let expected = safetensors::read(&fixture(folder).join("logits.safetensors")).unwrap();
    for (i, row) in rows(&json(folder, "expected.json"), "rows").iter().enumerate() {
        let adapter = model.adapter.as_ref().map(|(_, device)| device);
        let got = model.decoder.logits(&model.decoder.forward_only(&Ragged::whole(&[row]), adapter));
        let want = expected[&format!("logits.{i}")].to_f32();
        assert_eq!(got.len(), want.len());
        let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
        assert!(worst < tolerance, "{folder}, row {i}: largest difference {worst}");
    }
}

/// Greedy tokens through the cache, one row at a time.
fn assert_greedy(model: &Model, folder: &str) {
    let expected = json(folder, "expected.json");
    let device = None;
    let adapters = [device];
    for (row, want) in rows(&expected, "rows").iter().zip(rows(&expected, "greedy")) {
        let mut cache = model.decoder.cache(8);
        let (mut ids, mut got, mut done) = (row.clone(), Vec::new(), 0);
        while got.len() < want.len() {
            let n = ids.len() - done;
            let input = Ragged {
                tokens: ids[done..].to_vec(),
                positions: (done as u32..ids.len() as u32).collect(),
                spans: vec![Span { rows: 0..n, start: done, table: (0..8).collect(), ..Span::default() }],
                wanted: vec![n as u32 - 1],
            };
            let hidden = model.decoder.forward(&input, &adapters, &mut cache);
            let spec = SampleSpec {
                temperature: 0.0,
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                repetition_penalty: 1.0,
                seen: vec![],
                uniform: 0.0,
            };
            done = ids.len();
            got.push(model.decoder.sample(&hidden, &[spec])[0].id);
            ids.push(got[got.len() - 1]);
        }
        assert_eq!(got, want, "{folder}");
    }
}

/// Loss and gradients of the mean cross-entropy over every token after the first of its row.
fn assert_gradients(model: &Model, folder: &str, mut params: Params<Cpu>) {
    let sequences = rows(&json(folder, "expected.json"), "rows");
    let mut input = Ragged::whole(&sequences.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let (mut wanted, mut targets, mut begin) = (vec![], vec![], 0);
    for row in &sequences {
        wanted.extend((begin..begin + row.len() - 1).map(|r| r as u32));
        targets.extend_from_slice(&row[1..]);
        begin += row.len();
    }
    input.wanted = wanted;
    let adapter = model.adapter.as_ref().map(|(_, device)| device);
    let tape = model.decoder.forward_train(input, adapter, Backprop::default());
    let head = model.decoder.logprobs(tape.hidden(), &targets, 1.0);
    let n = targets.len() as f32;
    let loss = -head.logprobs.iter().sum::<f32>() / n;
    let want = json(folder, "gradients.json")["loss"].as_f64().unwrap();
    assert!((f64::from(loss) - want).abs() < 1e-5, "{folder}: loss {loss}, want {want}");
    model.decoder.backward(tape, adapter, &targets, 1.0, &head.lse, &vec![-1.0 / n; targets.len()], &mut params);
    let grads = params.grads(&**model.decoder.backend());
    let expected = safetensors::read(&fixture(folder).join("gradients.safetensors")).unwrap();
    assert_eq!(grads.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, want) in &expected {
        let (got, want) = (grads[name].to_f32(), want.to_f32());
        let size = want.iter().fold(0.0f32, |m, w| m.max(w.abs()));
        assert!(size > 0.0, "{name}: torch has no gradient");
        let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-4 * size + 1e-7, "{folder}, {name}: largest difference {worst}, largest value {size}");
    }
}

#[test]
fn a_base_in_4_bits_of_bitsandbytes_computes_what_transformers_does() {
    let model = load("tiny-untied-nf4", None);
    assert_logits(&model, "tiny-untied-nf4", 1e-4);
    assert_greedy(&model, "tiny-untied-nf4");
    assert!(!model.tensors.keys().any(|name| name.contains("absmax") || name.contains("quant")));
}

#[test]
fn logits_and_greedy_tokens_equal_transformers() {
    for (folder, tolerance) in [("tiny-untied", 1e-4), ("tiny-tied", 1e-4), ("tiny-tied-bf16-sharded", 1e-4)] {
        let model = load(folder, None);
        assert_logits(&model, folder, tolerance);
        assert_greedy(&model, folder);
    }
}

#[test]
fn adapters_equal_peft() {
    for (base, folder) in [("tiny-untied", "adapter-untied"), ("tiny-tied", "adapter-tied-rslora")] {
        let model = load(base, Some(folder));
        assert_logits(&model, folder, 1e-4);
        let (file, _) = model.adapter.as_ref().unwrap();
        let params =
            Params::lora_from(&**model.decoder.backend(), model.decoder.config(), file.config.shape(), &file.tensors)
                .unwrap();
        assert_gradients(&model, folder, params);
    }
}

#[test]
fn gradients_of_all_weights_equal_torch() {
    let model = load("tiny-tied", None);
    let params = Params::full(&**model.decoder.backend(), model.decoder.config(), &model.tensors).unwrap();
    assert_gradients(&model, "tiny-tied", params);
}

/// Every family beyond plain Llama, as `tests/parity/families.py` makes them.
const FAMILIES: [&str; 7] = ["llama3", "llama-linear", "mistral", "qwen2", "qwen2-yarn", "qwen3", "gemma3"];

#[test]
fn families_equal_transformers() {
    for name in FAMILIES {
        let folder = format!("tiny-{name}");
        let model = load(&folder, None);
        assert_logits(&model, &folder, 1e-4);
        let expected = rows(&json(&folder, "expected.json"), "greedy");
        assert!(expected.iter().all(|row| row.len() == 32), "{folder}: a fixture with fewer than 32 tokens");
        assert_greedy(&model, &folder);
    }
}

#[test]
fn adapters_of_families_equal_peft() {
    for name in FAMILIES {
        let folder = format!("adapter-{name}");
        let model = load(&format!("tiny-{name}"), Some(&folder));
        assert_logits(&model, &folder, 1e-4);
        let (file, _) = model.adapter.as_ref().unwrap();
        let params =
            Params::lora_from(&**model.decoder.backend(), model.decoder.config(), file.config.shape(), &file.tensors)
                .unwrap();
        assert_gradients(&model, &folder, params);
    }
}
