//! AdamW with moments in eight bits: against bitsandbytes (`tests/parity/make_adamw8.py`), and as a state that is saved.

mod common;

use common::fixture;
use folgore_model::{
    HostData, HostTensor, ModelConfig, Tensors,
    backend::{AdamW, Backend, Cpu},
    decoder::Linear,
    files::safetensors,
    lora::{LoraInit, LoraShape},
    params::Params,
    quant::dynamic::{BLOCK, Blocks},
};
use folgore_protocol::seed;

const UPDATES: u64 = 8;

/// Each of eight updates, from the state that bitsandbytes had. A code is another one where a number lies on the bound between two,
/// because torch fuses other operations than we do, and where bitsandbytes codes a second moment as 0.
#[test]
fn updates_are_those_of_bitsandbytes() {
    let file = std::fs::read(fixture("adamw8").join("steps.safetensors")).unwrap();
    let theirs = safetensors::from_bytes("adamw8", file).unwrap();
    let values = |name: &str, step: u64| theirs[&format!("{name}.{step}")].to_f32();
    let blocks = |name: &str, step: u64| match &theirs[&format!("{name}.{step}")].data {
        HostData::U8(codes) => Blocks { codes: codes.clone(), scales: values(&format!("{name}_absmax"), step) },
        other => panic!("{name} is {other:?}"),
    };
    let b = Cpu::new();
    let count = values("param", 0).len();
    let (mut m, mut v) = (Blocks::zeros(count), Blocks::zeros(count));
    for step in 1..=UPDATES {
        let settings = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, grad_scale: 1.0, step };
        let (mut param, grad) = (b.upload(&values("param", step - 1)), values("grad", step));
        b.adamw_8bit(&mut param, &b.upload(&grad), &mut m, &mut v, &settings);
        for (i, (ours, theirs)) in b.download(&param).iter().zip(values("param", step)).enumerate() {
            assert!(
                (ours - theirs).abs() <= 1e-6 * theirs.abs().max(0.1),
                "update {step}, weight {i}: {ours} {theirs}"
            );
        }
        let (their_m, their_v) = (blocks("m", step), blocks("v", step));
        let (mut apart, mut kept) = (0, 0);
        for (name, ours, theirs) in [("m", &m, &their_m), ("v", &v, &their_v)] {
            for (ours, theirs) in ours.scales.iter().zip(&theirs.scales) {
                assert!((ours - theirs).abs() <= 3e-6 * theirs, "update {step}, {name}: scale {ours} {theirs}");
            }
            for i in (0..count).filter(|i| ours.scales[i / BLOCK] > 0.0) {
                let (ours, theirs) = (ours.codes[i], theirs.codes[i]);
                assert!(ours.abs_diff(theirs) <= 1, "update {step}, {name}: code {i} {ours} {theirs}");
                let zero = name == "v" && theirs == 0 && ours == 1;
                kept += usize::from(zero);
                apart += usize::from(ours != theirs && !zero);
            }
        }
        assert!(apart <= 2 * count / 1000, "update {step}: {apart} of {} codes are others", 2 * count);
        assert!((1..count / 50).contains(&kept), "update {step}: bitsandbytes coded {kept} second moments as 0");
        assert!((0..count).all(|i| grad[i] == 0.0 || v.codes[i] > 0), "update {step}: a second moment is 0");
        (m, v) = (their_m, their_v);
    }
}

fn config() -> ModelConfig {
    ModelConfig {
        model_type: "llama".into(),
        vocab_size: 64,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 1,
        num_attention_heads: 4,
        num_key_value_heads: 1,
        head_dim: 16,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        max_position_embeddings: 64,
        eos_token_ids: vec![0],
        bos_token_id: None,
        variant: Default::default(),
    }
}

fn params(coded: bool) -> Params<Cpu> {
    let targets = Linear::ALL.to_vec();
    let shape = LoraShape { r: 64, alpha: 64.0, use_rslora: false, dropout: 0.0, targets, rules: Default::default() };
    let mut params = Params::lora(&Cpu::new(), &config(), shape, LoraInit::Kaiming, 3);
    if coded {
        params.code_moments(&Cpu::new());
    }
    params
}

/// A state with a moment of every kind, as if some updates had been.
fn state() -> Tensors {
    let fill = |(name, tensor): (String, HostTensor)| {
        let stream = seed::mix(&[name.len() as u64, name.bytes().map(u64::from).sum()]);
        let tensor = match &tensor.data {
            HostData::U8(codes) => {
                let codes = (0..codes.len() as u64).map(|i| seed::below(stream, i, 256) as u8).collect();
                HostTensor { shape: tensor.shape, data: HostData::U8(codes) }
            }
            _ => {
                let values = (0..tensor.to_f32().len() as u64).map(|i| seed::uniform(stream, i)).collect();
                HostTensor::f32(tensor.shape, values)
            }
        };
        (name, tensor)
    };
    params(true).moments(&Cpu::new()).into_iter().map(fill).collect()
}

#[test]
fn a_state_in_eight_bits_is_saved_and_read_back_exactly() {
    let b = Cpu::new();
    let state = state();
    let name = "model.layers.0.mlp.gate_proj.lora_A";
    assert!(matches!(state[&format!("{name}.m")].data, HostData::U8(_)));
    assert_eq!(state[&format!("{name}.v.absmax")].shape, [16]);
    let small = "model.layers.0.self_attn.k_proj.lora_B.m";
    assert!(matches!(state[small].data, HostData::F32(_)), "a tensor of 1024 numbers keeps them");
    let file = safetensors::to_bytes(&state, &Default::default());
    let mut restored = params(true);
    restored.set_moments(&b, &safetensors::from_bytes("state", file).unwrap()).unwrap();
    assert_eq!(restored.moments(&b), state);
    // and the next updates have the same bits
    let mut other = params(true);
    other.set_moments(&b, &state).unwrap();
    let settings = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0, grad_scale: 1.0, step: 5 };
    for params in [&mut restored, &mut other] {
        params.step(&b, &settings);
        params.step(&b, &settings);
    }
    assert_eq!(restored.moments(&b), other.moments(&b));
    assert_eq!(restored.values(&b), other.values(&b));
}

#[test]
fn a_state_of_the_other_kind_or_shape_is_refused_by_name() {
    let b = Cpu::new();
    let numbers = params(false).moments(&b);
    let error = params(true).set_moments(&b, &numbers).unwrap_err().to_string();
    assert!(error.contains("optimiser state: type of model.layers.0.") && error.contains("got f32"), "{error}");
    let error = params(false).set_moments(&b, &state()).unwrap_err().to_string();
    assert!(error.contains("expected f32, got codes of eight bits"), "{error}");
    let mut short = state();
    let scales = "model.layers.0.mlp.gate_proj.lora_A.m.absmax";
    short.insert(scales.into(), HostTensor::f32([15], vec![0.0; 15]));
    let error = params(true).set_moments(&b, &short).unwrap_err().to_string();
    assert!(error.contains(&format!("shape of {scales}: expected [16], got [15]")), "{error}");
    short.remove(scales);
    let error = params(true).set_moments(&b, &short).unwrap_err().to_string();
    assert!(error.contains(&format!("tensor {scales} is missing")), "{error}");
}
