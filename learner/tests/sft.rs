//! Supervised fine-tuning on a tiny decoder: equal to candle, packed as one by one, and a resumed run is the same run.

#[path = "../../model/tests/common/candle.rs"]
mod candle;

use std::{cell::Cell, collections::BTreeMap, num::NonZeroUsize, path::Path, sync::Arc};

use candle::Oracle;
use candle_core::{Device, Tensor};
use folgore_config::optim::{LrSchedulerType, OptimSection};
use folgore_learner::{
    checkpoint::{CheckpointStore, MetricsLog, TrainerState, state},
    sft::{
        Evaluation, Lessons, Listener, Order, Sequence, Sft, SftPlan, SftSettings, Standing, best::BestFolder,
        evaluate, step::gradient,
    },
    trainee::Trainee,
};
use folgore_model::{
    HostTensor, ModelConfig, Tensors,
    backend::Cpu,
    decoder::{Decoder, Linear},
    files::{
        peft::{AdapterFile, LoraConfig},
        safetensors,
    },
    lora::{LoraInit, LoraShape},
    params::{Params, random_weights},
};
use folgore_protocol::seed;
use serde_json::{Map, Value};

fn config() -> ModelConfig {
    ModelConfig {
        model_type: "llama".into(),
        vocab_size: 50,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        max_position_embeddings: 96,
        eos_token_ids: vec![0],
        bos_token_id: None,
        variant: Default::default(),
    }
}

fn shape() -> LoraShape {
    LoraShape {
        r: 3,
        alpha: 5.0,
        use_rslora: false,
        dropout: 0.0,
        targets: Linear::ALL.to_vec(),
        rules: Default::default(),
    }
}

fn drawn(stream: u64, size: f32, t: &HostTensor) -> HostTensor {
    let n = t.shape.iter().product::<usize>() as u64;
    HostTensor::f32(t.shape.clone(), (0..n).map(|i| size * seed::normal(stream, i)).collect())
}

/// Weights large enough that every path matters.
fn base() -> Tensors {
    let wide = |(i, (name, t)): (usize, (String, HostTensor))| {
        let t = if t.shape.len() == 1 { t } else { drawn(i as u64, 0.25, &t) };
        (name, t)
    };
    random_weights(&config(), 5).into_iter().enumerate().map(wide).collect()
}

fn adapter() -> Tensors {
    let zero = |[rows, columns]: [usize; 2]| HostTensor::f32([rows, columns], vec![0.0; rows * columns]);
    let tensors = shape().tensors(&config()).into_iter().enumerate();
    tensors.map(|(i, (name, sizes))| (name, drawn(100 + i as u64, 0.2, &zero(sizes)))).collect()
}

fn trainee() -> Trainee<Cpu> {
    let backend = Arc::new(Cpu::new());
    let decoder = Decoder::load(backend.clone(), config(), &base()).unwrap();
    let params = Params::lora_from(&*backend, &config(), shape(), &adapter()).unwrap();
    Trainee::new(decoder, params).unwrap()
}

/// Sequences of uneven lengths; some with two learnt turns.
fn sequences(n: u64) -> Vec<Sequence> {
    let sequence = |s: u64| {
        let len = 8 + seed::below(s, 1000, 30) as usize;
        let ids = (0..len as u64).map(|i| seed::below(s, i, 50) as u32).collect();
        let learnt = (0..len).map(|at| at >= 5 && !(s.is_multiple_of(3) && (10..13).contains(&at))).collect();
        let source = if s.is_multiple_of(2) { "even" } else { "odd" };
        Sequence { example: format!("{s}"), source: source.into(), ids, learnt }
    };
    (0..n).map(sequence).collect()
}

fn settings(max_tokens_per_micro_batch: usize) -> SftSettings {
    let optim = OptimSection {
        learning_rate: 5e-3,
        warmup_steps: 2,
        lr_scheduler_type: LrSchedulerType::Cosine,
        ..OptimSection::default()
    };
    SftSettings { optim, max_tokens_per_micro_batch, recompute: None, lora_dropout: 0.0, seed: 3 }
}

fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    for (g, w) in got.iter().zip(want) {
        assert!((f64::from(*g) - w).abs() <= tolerance * (size + 1e-3), "{what}: got {g}, want {w} (largest {size})");
    }
}

#[test]
fn loss_and_gradients_are_those_of_candle() {
    let all = sequences(5);
    let oracle = Oracle::new(&config(), &[&base(), &adapter()], f64::from(shape().scale()));
    let learnt = |s: &Sequence| {
        let places: Vec<u32> = (1..s.ids.len()).filter(|at| s.learnt[*at]).map(|at| at as u32 - 1).collect();
        oracle.logprobs(&s.ids, 1.0).index_select(&Tensor::new(places, &Device::Cpu).unwrap(), 0).unwrap()
    };
    let logprobs = Tensor::cat(&all.iter().map(learnt).collect::<Vec<_>>(), 0).unwrap();
    // the mean over all tokens of the batch, not the mean of the means
    let loss = logprobs.mean_all().unwrap().neg().unwrap();
    let (want, want_loss) = (oracle.gradients(&loss), loss.to_scalar::<f64>().unwrap());
    for (budget, recompute) in [(10_000, None), (40, NonZeroUsize::new(1)), (0, None)] {
        let (mut trainee, settings) = (trainee(), SftSettings { recompute, ..settings(budget) });
        let (scores, _) = gradient(&mut trainee, &all.iter().collect::<Vec<_>>(), 1, &settings);
        assert!((scores.all().loss() - want_loss).abs() < 1e-5 * want_loss, "{} {want_loss}", scores.all().loss());
        let grads = trainee.params().grads(trainee.decoder().backend());
        assert_eq!(grads.len(), 2 * 2 * 7);
        for (name, grad) in grads {
            close(&name, &grad.to_f32(), &want[&name], 2e-4);
        }
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let (trainee, all) = (trainee(), sequences(9));
    let packed = folgore_learner::sft::pack::pack(&all.iter().collect::<Vec<_>>(), 100);
    assert!(packed.len() > 1 && packed.len() < 9, "{}", packed.len());
    for call in packed {
        let together = trainee.logprobs(&call.input, &call.targets, 1.0);
        for (place, targets) in call.parts {
            let [alone] = &folgore_learner::sft::pack::pack(&[&all[place]], 0)[..] else { unreachable!() };
            let alone = trainee.logprobs(&alone.input, &alone.targets, 1.0);
            // bit for bit: what a row gives does not depend on the rows beside it
            assert_eq!(together.logprobs[targets.clone()], alone.logprobs[..]);
            assert_eq!(together.likeliest[targets], alone.likeliest[..]);
        }
    }
}

#[test]
fn a_neighbour_changes_no_gradient() {
    let mut all = sequences(2);
    // of the second nothing is learnt: all gradients are those of the first
    all[1].learnt.fill(false);
    let gradients = |batch: &[&Sequence]| {
        let mut trainee = trainee();
        gradient(&mut trainee, batch, 1, &settings(10_000));
        trainee.params().grads(trainee.decoder().backend())
    };
    let (alone, beside) = (gradients(&[&all[0]]), gradients(&[&all[0], &all[1]]));
    for (name, grad) in &alone {
        let want: Vec<f64> = grad.to_f32().into_iter().map(f64::from).collect();
        close(name, &beside[name].to_f32(), &want, 1e-6);
    }
}

#[test]
fn the_sft_term_of_the_vectors() {
    // SFT beside RL in LUFFY's baseline: the mean negative log-prob of a trace of six tokens
    let logprobs = [-0.4, -0.98, -0.15, -1.9, -1.05, -0.05f64];
    let slope = f64::from(folgore_learner::sft::step::slope(logprobs.len()));
    assert!((logprobs.iter().map(|lp| slope * lp).sum::<f64>() - 0.755).abs() < 1e-6);
    assert!((slope + 0.166_666_666_667).abs() < 1e-7);
}

#[test]
fn scores_are_by_source_and_count_the_likeliest() {
    let (trainee, all) = (trainee(), sequences(6));
    let evaluation = evaluate(&trainee, &all, 64);
    let tokens: u64 = all.iter().map(|s| s.learnt_tokens() as u64).sum();
    assert_eq!(evaluation.0.keys().collect::<Vec<_>>(), ["even", "odd"]);
    assert_eq!(evaluation.all().tokens, tokens);
    let mut right = 0;
    for s in &all {
        let input = folgore_model::decoder::Ragged::whole(&[&s.ids[..s.ids.len() - 1]]);
        for (row, at) in (1..s.ids.len()).enumerate().filter(|(_, at)| s.learnt[*at]) {
            let best = (0..50u32).map(|id| {
                let mut one = input.clone();
                one.wanted = vec![row as u32];
                trainee.logprobs(&one, &[id], 1.0).logprobs[0]
            });
            let best: Vec<f32> = best.collect();
            right += u64::from(best.iter().all(|lp| *lp <= best[s.ids[at] as usize]));
        }
    }
    assert_eq!(evaluation.all().likeliest, right);
    let mut line = Map::new();
    evaluation.metrics("eval_", &mut line);
    let number = |key: &str| line[key].as_f64().unwrap();
    assert!((number("eval_perplexity").ln() - number("eval_loss")).abs() < 1e-9);
    assert!(line.contains_key("eval_loss/odd") && line.contains_key("eval_mean_token_accuracy/even"));
}

/// A row for each sequence, in another order in each pass.
struct Shuffled(Vec<Sequence>);

impl Lessons for Shuffled {
    fn rows(&self) -> u64 {
        self.0.len() as u64
    }

    fn at(&self, position: u64) -> &[Sequence] {
        let (pass, place) = (position / self.rows(), position % self.rows());
        let place = ((place + 3 * pass) % self.rows()) as usize;
        &self.0[place..place + 1]
    }
}

/// Notes what it is told.
#[derive(Default)]
struct Notes {
    evaluated: Vec<(u64, bool)>,
    saved: Vec<u64>,
}

impl Listener for Notes {
    fn stepped(&mut self, _: u64, _: &Map<String, Value>) {}

    fn evaluated(&mut self, step: u64, _: &Evaluation, best: bool) {
        self.evaluated.push((step, best));
    }

    fn saved(&mut self, step: u64, _: &Path) {
        self.saved.push(step);
    }
}

fn sft(folder: &Path, trainee: Trainee<Cpu>, change: impl FnOnce(&mut SftPlan)) -> Sft<Cpu> {
    let all = sequences(20);
    let mut plan = SftPlan {
        settings: settings(80),
        order: Order::new(16, 5),
        max_steps: 10,
        save_steps: 3,
        eval_steps: 2,
        eval_before: true,
        eval_after: true,
        patience: 0,
        threshold: 0.0,
        base_model: "tiny".into(),
        lora: LoraConfig::from_shape(&shape(), LoraInit::Kaiming),
        beside: BTreeMap::new(),
        identity: BTreeMap::new(),
    };
    change(&mut plan);
    Sft {
        trainee,
        train: Box::new(Shuffled(all[..16].to_vec())),
        held_out: all[16..].to_vec(),
        plan,
        checkpoints: CheckpointStore::open(folder.join("checkpoints"), 9).unwrap(),
        best: Some(BestFolder::at(folder.join("best")).unwrap()),
        metrics: MetricsLog::open(folder.join("metrics.jsonl")).unwrap(),
    }
}

/// Metrics without what depends on the clock.
fn metrics(folder: &Path) -> Vec<Map<String, Value>> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut line: Map<String, Value> = serde_json::from_str(line).unwrap();
        line.retain(|key, _| key != "step_time" && !key.starts_with("perf/"));
        line
    };
    text.lines().map(line).collect()
}

#[test]
fn a_resumed_run_is_the_same_run() {
    let (whole, parted) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut notes = Notes::default();
    let ended = sft(whole.path(), trainee(), |_| {}).run(Standing::default(), || false, &mut notes).unwrap();
    assert_eq!((ended.standing.step, ended.early), (10, false));
    assert_eq!(notes.saved, [3, 6, 9, 10]);
    assert_eq!(notes.evaluated.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 2, 4, 6, 8, 10]);
    // stopped before its fifth step, which it saves, and later as if it had been killed after the sixth
    let asked = Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) >= 4;
    let stopped = sft(parted.path(), trainee(), |_| {}).run(Standing::default(), stop, &mut Notes::default()).unwrap();
    assert_eq!(stopped.standing.step, 4);
    let mut store = CheckpointStore::open(parted.path().join("checkpoints"), 9).unwrap();
    let newest = store.newest().unwrap().0.unwrap();
    let found = TrainerState::from_bytes(&newest.read(state::TRAINER).unwrap()).unwrap();
    let standing = Standing::of(&found);
    assert_eq!(standing, stopped.standing);
    let file = AdapterFile::read(&newest.path).unwrap();
    let backend = Arc::new(Cpu::new());
    let decoder = Decoder::load(backend.clone(), config(), &base()).unwrap();
    let params = Params::lora_from(&*backend, &config(), file.config.shape(), &file.tensors).unwrap();
    let mut again = Trainee::new(decoder, params).unwrap();
    let moments = safetensors::from_bytes(state::OPTIMIZER, newest.read(state::OPTIMIZER).unwrap()).unwrap();
    again.restore(&moments, found.schedule["updates"].as_u64().unwrap()).unwrap();
    let resumed = sft(parted.path(), again, |_| {}).run(standing, || false, &mut Notes::default()).unwrap();
    assert_eq!(resumed, ended);
    assert_eq!(metrics(parted.path()), metrics(whole.path()));
    let adapter =
        |folder: &Path, name: &str| std::fs::read(folder.join(name).join("adapter_model.safetensors")).unwrap();
    for name in ["checkpoints/checkpoint-10", "best"] {
        assert_eq!(adapter(whole.path(), name), adapter(parted.path(), name), "{name}");
    }
}

#[test]
fn patience_ends_a_run_and_the_best_adapter_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut notes = Notes::default();
    // so fast that it gets worse on what it has not seen
    let hasty = |plan: &mut SftPlan| {
        (plan.max_steps, plan.patience, plan.eval_steps) = (60, 2, 1);
        plan.settings.optim.learning_rate = 0.3;
    };
    let ended = sft(folder.path(), trainee(), hasty).run(Standing::default(), || false, &mut notes).unwrap();
    assert!(ended.early && ended.standing.step < 60, "{ended:?}");
    assert_eq!(notes.evaluated.iter().rev().take_while(|e| !e.1).count(), 2);
    assert_eq!(notes.saved.last(), Some(&ended.standing.step));
    let best = ended.standing.best.unwrap();
    let file = AdapterFile::read(&folder.path().join("best")).unwrap();
    let backend = Arc::new(Cpu::new());
    let decoder = Decoder::load(backend.clone(), config(), &base()).unwrap();
    let params = Params::lora_from(&*backend, &config(), file.config.shape(), &file.tensors).unwrap();
    let kept = evaluate(&Trainee::new(decoder, params).unwrap(), &sequences(20)[16..], 80);
    assert_eq!(kept.all().loss(), best.loss);
    // a run that is out of patience stays so
    let again = sft(folder.path(), trainee(), hasty).run(ended.standing.clone(), || false, &mut notes).unwrap();
    assert_eq!(again.standing, ended.standing);
}
