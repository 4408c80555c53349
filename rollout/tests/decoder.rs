//! The engine over a real decoder: bits do not depend on company, order, limits or preemption, and equal the learner's.

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc};

use folgore_model::{
    Activation, Local, ModelConfig, Variant,
    backend::{Backend, Cpu, HeadOut, KvPrecision, Naive},
    decoder::{Backprop, Decoder, Linear, Ragged, Recall},
    lora::{Adapter, LoraInit, LoraShape},
    params::{Params, random_weights},
};
use folgore_protocol::{Digest, Generate, Generated, PolicyId, SamplingParams, seed};
use folgore_rollout::{DecoderModel, Engine, EngineConfig, TextPiece};

struct NoText;
impl TextPiece for NoText {
    fn piece(&self, _: &[u32]) -> String {
        String::new()
    }
}

/// What families have beyond Llama: a window that the sequences outgrow, in one layer of the two, and all the rest.
fn variant() -> Variant {
    Variant {
        local: Some(Local { window: 11, layers: vec![true, false], rope_theta: Some(100.0) }),
        biases: Linear::ALL.to_vec(),
        qk_norm: true,
        activation: Activation::GeluTanh,
        output_norms: true,
        embedding_scale: Some(2.0),
        final_softcap: Some(15.0),
        ..Variant::default()
    }
}

fn config(variant: Variant) -> ModelConfig {
    ModelConfig {
        model_type: "llama".into(),
        vocab_size: 61,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 6,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        max_position_embeddings: 160,
        eos_token_ids: vec![0],
        bos_token_id: None,
        variant,
    }
}

fn decoder<B: Backend>(backend: B, variant: Variant) -> Decoder<B> {
    let config = config(variant);
    let mut weights = random_weights(&config, 3);
    // Larger weights than a fresh model has, so that the distribution is far from flat.
    for tensor in weights.values_mut().filter(|t| t.shape.len() == 2) {
        let values = tensor.to_f32().iter().map(|x| x * 12.0).collect();
        *tensor = folgore_model::HostTensor::f32(tensor.shape.clone(), values);
    }
    Decoder::load(Arc::new(backend), config, &weights).unwrap()
}

fn shape() -> LoraShape {
    LoraShape {
        r: 3,
        alpha: 6.0,
        use_rslora: false,
        dropout: 0.0,
        targets: vec![Linear::QProj, Linear::UpProj],
        rules: Default::default(),
    }
}

/// An adapter whose both halves are random: it changes every logit.
fn adapter<B: Backend>(decoder: &Decoder<B>) -> Arc<Adapter<B>> {
    let shape = shape();
    let params = Params::lora(&**decoder.backend(), decoder.config(), shape.clone(), LoraInit::Kaiming, 5);
    let mut tensors = params.values(&**decoder.backend());
    for (i, tensor) in tensors.values_mut().enumerate() {
        let count = tensor.to_f32().len() as u64;
        let values = (0..count).map(|j| 0.3 * seed::normal(70 + i as u64, j)).collect();
        *tensor = folgore_model::HostTensor::f32(tensor.shape.clone(), values);
    }
    Arc::new(Adapter::load(&**decoder.backend(), decoder.config(), &shape, &tensors).unwrap())
}

fn policy(step: u64) -> PolicyId {
    PolicyId { epoch: 0, step, digest: Digest::of(&step.to_le_bytes()) }
}

/// The request that is not made for training.
const ALONE: u64 = 15;

/// Requests with shared prompts, shared beginnings, both policies, and all ways to sample.
fn requests() -> Vec<Generate> {
    let mut requests = Vec::new();
    for i in 0..18u64 {
        let len = [5, 16, 37, 37, 48, 21][i as usize % 6];
        // one shares its prompt with nobody
        let stride = if i == ALONE { 11 } else { 7 };
        let ids = (0..len).map(|j| if j == 20 { (i % 2) as u32 } else { 1 + (j * stride) % 60 }).collect();
        let sampling = SamplingParams {
            max_new_tokens: 10 + (i as u32 * 5) % 30,
            temperature: [1.0, 0.7, 0.0][i as usize % 3],
            top_k: if i % 4 == 1 { 10 } else { 0 },
            top_p: if i % 5 == 2 { 0.8 } else { 1.0 },
            repetition_penalty: if i % 6 == 3 { 1.3 } else { 1.0 },
            ignore_eos: i % 2 == 0,
            ..SamplingParams::default()
        };
        let (seed, policy) = (1000 + i / 2, Some(policy(i % 2)));
        requests.push(Generate { ids, sampling, seed, policy, at_least: None, for_training: i != ALONE });
    }
    requests
}

struct Limits {
    blocks: usize,
    sequences: usize,
    tokens: usize,
}

/// Runs `order` of the requests, `stride` of them arriving between two steps; results by place in `requests`.
fn run<B: Backend>(
    decoder: &Decoder<B>,
    adapter: &Arc<Adapter<B>>,
    limits: Limits,
    order: &[usize],
    stride: usize,
    recall: Option<Arc<Recall<B>>>,
) -> (Vec<Generated>, u64) {
    let config = EngineConfig {
        max_concurrent_sequences: limits.sequences,
        max_tokens_per_step: limits.tokens,
        ..EngineConfig::default()
    };
    let model = DecoderModel::new(decoder.clone(), limits.blocks).with_recall(recall);
    let mut engine = Engine::new(model, Arc::new(NoText), config);
    engine.publish(policy(0), None);
    engine.publish(policy(1), Some(adapter.clone()));
    let requests = requests();
    let mut names = HashMap::new();
    let mut results = HashMap::new();
    for arrivals in order.chunks(stride) {
        for &i in arrivals {
            names.insert(engine.submit(requests[i].clone()).unwrap(), i);
        }
        results.extend(engine.step().into_iter().map(|(id, generated)| (names[&id], generated)));
    }
    while !engine.is_idle() {
        results.extend(engine.step().into_iter().map(|(id, generated)| (names[&id], generated)));
    }
    let stats = engine.stats();
    assert_eq!(stats.blocks_held, 0);
    ((0..requests.len()).map(|i| results.remove(&i).unwrap()).collect(), stats.preemptions)
}

fn bits(generated: &[Generated]) -> Vec<(Vec<u32>, Vec<u32>)> {
    generated.iter().map(|g| (g.ids.clone(), g.logprobs.iter().map(|l| l.to_bits()).collect())).collect()
}

fn check<B: Backend>(backend: B, variant: Variant, precision: KvPrecision) -> Vec<Generated> {
    let is_llama = variant.is_llama();
    let decoder = decoder(backend, variant).with_kv(precision);
    let adapter = adapter(&decoder);
    let forward: Vec<usize> = (0..requests().len()).collect();
    let backward: Vec<usize> = forward.iter().rev().copied().collect();
    let (alone, _) = run(&decoder, &adapter, Limits { blocks: 12, sequences: 1, tokens: 1000 }, &forward, 1, None);
    let (together, none) =
        run(&decoder, &adapter, Limits { blocks: 200, sequences: 64, tokens: 1000 }, &backward, 100, None);
    assert_eq!(bits(&alone), bits(&together));
    assert_eq!(none, 0);
    let (crowded, preempted) =
        run(&decoder, &adapter, Limits { blocks: 8, sequences: 8, tokens: 22 }, &backward, 3, None);
    assert_eq!(bits(&alone), bits(&crowded));
    assert!(preempted > 0, "the small cache was meant to force preemptions");
    // logits of the other shape, and rounded ones, happen to keep clear of the end token
    let may_end = is_llama && precision == KvPrecision::F32;
    assert!(!may_end || alone.iter().any(|g| g.ids.last() == Some(&0)), "no sequence ended by itself");
    as_the_learner_sees_it(&decoder, &adapter, &alone);
    for (every, crowd) in [(0, true), (0, false), (1, true), (2, false), (9, true)] {
        let recall = Arc::new(Recall::new(2000, NonZeroUsize::new(every)));
        let limits = match crowd {
            true => Limits { blocks: 8, sequences: 8, tokens: 22 },
            false => Limits { blocks: 200, sequences: 64, tokens: 1000 },
        };
        let (kept, _) = run(&decoder, &adapter, limits, &backward, 3, Some(recall.clone()));
        assert_eq!(bits(&alone), bits(&kept));
        the_learner_recalls_it(&decoder, &adapter, &alone, &recall);
    }
    let small = Arc::new(Recall::new(100, None));
    run(&decoder, &adapter, Limits { blocks: 200, sequences: 64, tokens: 1000 }, &backward, 3, Some(small.clone()));
    assert!(!small.wants(policy(1)) && small.find(policy(1), &Ragged::whole(&[&requests()[1].ids])).is_none());
    alone
}

/// What the engine kept gives the same log-probs and gradients as a forward of the learner's own, bit for bit.
fn the_learner_recalls_it<B: Backend>(
    decoder: &Decoder<B>,
    adapter: &Adapter<B>,
    results: &[Generated],
    recall: &Recall<B>,
) {
    let b = &**decoder.backend();
    for (i, (request, generated)) in requests().iter().zip(results).enumerate() {
        let mut ids: Vec<u32> = request.ids.iter().chain(&generated.ids).copied().collect();
        ids.pop();
        let mut input = Ragged::whole(&[&ids]);
        input.wanted = (request.ids.len() as u32 - 1..ids.len() as u32).collect();
        let found = recall.find(policy(1), &input);
        // of the newest policy, and for training
        assert_eq!(found.is_some(), i % 2 == 1 && i != ALONE as usize, "request {i}");
        let Some(rows) = found else { continue };
        let temperature = if request.sampling.temperature > 0.0 { request.sampling.temperature } else { 1.0 };
        let how = Backprop { recompute: recall.every(), dropout: None };
        let scores = recall.scores(&rows, &input.wanted, &generated.ids, temperature).expect("all were sampled");
        assert!(recall.scores(&rows, &input.wanted, &generated.ids, 1.5).is_none(), "of another temperature");
        let own = decoder.forward_train(input.clone(), Some(adapter), how);
        // a sampler does not say which token would have been the likeliest
        let computed = decoder.logprobs(own.hidden(), &generated.ids, temperature);
        assert_eq!(scores, HeadOut { likeliest: Vec::new(), ..computed });
        let recalled = decoder.recalled(input, rows, how.recompute);
        let slopes: Vec<f32> = (0..generated.ids.len() as u64).map(|j| seed::normal(9, j)).collect();
        let [own, recalled] = [own, recalled].map(|tape| {
            let hidden = b.download(tape.hidden());
            let mut params = Params::lora(b, decoder.config(), shape(), LoraInit::Kaiming, 5);
            decoder.backward(tape, Some(adapter), &generated.ids, temperature, &scores.lse, &slopes, &mut params);
            assert!(params.grad_norm(b) > 0.0);
            (hidden, params.grads(b))
        });
        assert_eq!(own, recalled, "request {i}");
    }
}

/// One forward over each whole sequence, as in learning, gives the same bits.
fn as_the_learner_sees_it<B: Backend>(decoder: &Decoder<B>, adapter: &Adapter<B>, results: &[Generated]) {
    for (i, (request, generated)) in requests().iter().zip(results).enumerate() {
        let ids: Vec<u32> = request.ids.iter().chain(&generated.ids).copied().collect();
        let mut input = Ragged::whole(&[&ids]);
        input.wanted = (request.ids.len() as u32 - 1..ids.len() as u32 - 1).collect();
        let hidden = decoder.forward_only(&input, (i % 2 == 1).then_some(adapter));
        let temperature = if request.sampling.temperature > 0.0 { request.sampling.temperature } else { 1.0 };
        let learned = decoder.logprobs(&hidden, &generated.ids, temperature).logprobs;
        let same = learned.iter().zip(&generated.logprobs).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "request {i}: {learned:?} against {:?}", generated.logprobs);
        assert_eq!(generated.policies.runs(), [(policy(i as u64 % 2), generated.ids.len() as u32)]);
    }
}

#[test]
fn bits_do_not_depend_on_company_on_the_naive_backend() {
    check(Naive, Variant::default(), KvPrecision::F32);
    check(Naive, variant(), KvPrecision::F32);
}

#[test]
fn bits_do_not_depend_on_company_on_the_cpu_backend() {
    check(Cpu::new(), Variant::default(), KvPrecision::F32);
    check(Cpu::new(), variant(), KvPrecision::F32);
}

/// Sequences go through the layers in as many parts as there are threads.
#[test]
fn bits_do_not_depend_on_threads() {
    let alone = check(Cpu::with_threads(1), variant(), KvPrecision::F32);
    for threads in [2, 3] {
        assert_eq!(bits(&alone), bits(&check(Cpu::with_threads(threads), variant(), KvPrecision::F32)));
    }
}

#[test]
fn bits_do_not_depend_on_company_with_a_cache_in_bfloat16() {
    for variant in [Variant::default(), variant()] {
        let exact = check(Cpu::new(), variant.clone(), KvPrecision::F32);
        let rounded = check(Cpu::new(), variant.clone(), KvPrecision::Bf16);
        assert_eq!(bits(&rounded), bits(&check(Naive, variant, KvPrecision::Bf16)));
        assert_ne!(bits(&exact), bits(&rounded), "the cache is in bfloat16");
    }
}
