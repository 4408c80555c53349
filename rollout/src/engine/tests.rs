//! The engine over a fake model: whatever shares the engine, a request gives what it gives alone.

use std::{collections::HashMap, sync::Arc};

use folgore_protocol::{Digest, Generate, Generated, PolicyId, SamplingParams, StopReason};
use proptest::prelude::*;

use super::*;
use crate::engine::fake::{CONTEXT, Fake, Letters, VOCAB, alone};

fn policy(step: u64) -> PolicyId {
    PolicyId { epoch: 0, step, digest: Digest::of(&step.to_le_bytes()) }
}

fn engine(blocks: usize, sequences: usize, tokens: usize) -> Engine<Fake> {
    let config = EngineConfig {
        max_concurrent_sequences: sequences,
        max_tokens_per_step: tokens,
        max_waiting: 1000,
        max_policies_in_flight: 2,
    };
    let mut engine = Engine::new(Fake::new(blocks), Arc::new(Letters), config);
    engine.publish(policy(0), 0);
    engine
}

fn request(ids: &[u32], seed: u64, max_new_tokens: u32) -> Generate {
    let sampling = SamplingParams { max_new_tokens, ignore_eos: true, ..SamplingParams::default() };
    Generate { ids: ids.to_vec(), sampling, seed, policy: None, at_least: None, for_training: false }
}

fn drain(engine: &mut Engine<Fake>) -> HashMap<SequenceId, Generated> {
    let mut ended = HashMap::new();
    for _ in 0..10_000 {
        if engine.is_idle() {
            return ended;
        }
        ended.extend(engine.step());
    }
    panic!("the engine does not come to an end: {:?}", engine.stats());
}

fn assert_alone(got: &Generated, adapter: u64, ids: &[u32], seed: u64, count: usize) {
    let (want_ids, want_logprobs) = alone(adapter, ids, seed, count);
    assert_eq!((&got.ids, &got.logprobs), (&want_ids, &want_logprobs));
    assert_eq!(got.policies.iter().map(|p| p.step).collect::<Vec<_>>(), vec![adapter; count]);
}

#[test]
fn a_group_computes_its_prompt_once() {
    let mut engine = engine(40, 8, 64);
    let prompt: Vec<u32> = (1..41).collect();
    let ids: Vec<_> = (0..8).map(|seed| engine.submit(request(&prompt, seed, 5)).unwrap()).collect();
    let ended = drain(&mut engine);
    for (seed, id) in ids.iter().enumerate() {
        assert_alone(&ended[id], 0, &prompt, seed as u64, 5);
    }
    // 40 prompt tokens once; each member computes all its new tokens but the last.
    assert_eq!(engine.model.tokens, 40 + 8 * 4);
    let stats = engine.stats();
    assert_eq!((stats.prefill_tokens, stats.decode_tokens, stats.cached_tokens), (40, 32, 7 * 40));
    assert_eq!((stats.blocks_held, stats.preemptions), (0, 0));
    // A member that comes much later computes nothing of the prompt either.
    let late = engine.submit(request(&prompt, 99, 1)).unwrap();
    assert_alone(&drain(&mut engine)[&late], 0, &prompt, 99, 1);
    assert_eq!(engine.model.tokens, 40 + 8 * 4);
}

#[test]
fn a_later_turn_takes_up_the_blocks_of_the_earlier_one() {
    let mut engine = engine(40, 4, 64);
    let prompt: Vec<u32> = (1..31).collect();
    let first = engine.submit(request(&prompt, 1, 20)).unwrap();
    let made = drain(&mut engine).remove(&first).unwrap();
    let context: Vec<u32> = prompt.iter().chain(&made.ids).copied().chain([7, 8, 9]).collect();
    let before = engine.model.tokens;
    let second = engine.submit(request(&context, 2, 1)).unwrap();
    assert_alone(&drain(&mut engine)[&second], 0, &context, 2, 1);
    // 49 keys were computed in the first turn: three full blocks of them are found.
    assert_eq!(engine.model.tokens - before, 53 - 48);
}

#[test]
fn a_long_prompt_is_computed_in_chunks_while_others_go_on() {
    let mut engine = engine(40, 2, 18);
    let short = engine.submit(request(&[5], 1, 10)).unwrap();
    engine.step();
    let long_prompt: Vec<u32> = (0..100).map(|i| i % VOCAB).collect();
    let long = engine.submit(request(&long_prompt, 2, 3)).unwrap();
    let mut steps = 0;
    let mut ended = HashMap::new();
    while !ended.contains_key(&short) {
        ended.extend(engine.step());
        steps += 1;
    }
    assert_eq!(steps, 9, "the short sequence takes a step per token");
    ended.extend(drain(&mut engine));
    assert_alone(&ended[&short], 0, &[5], 1, 10);
    assert_alone(&ended[&long], 0, &long_prompt, 2, 3);
}

#[test]
fn a_sequence_keeps_its_policy_and_at_most_two_live() {
    let mut engine = engine(40, 8, 64);
    let prompt = [1, 2, 3];
    let on_0 = engine.submit(request(&prompt, 1, 30)).unwrap();
    engine.step();
    engine.publish(policy(1), 1);
    let on_1 = engine.submit(request(&prompt, 1, 40)).unwrap();
    engine.step();
    engine.publish(policy(2), 2);
    assert_eq!(engine.newest(), Some(policy(1)), "a third policy waits");
    let still_1 = engine.submit(request(&prompt, 2, 3)).unwrap();
    let pinned = engine.submit(Generate { policy: Some(policy(0)), ..request(&prompt, 3, 3) }).unwrap();
    let mut ended = HashMap::new();
    while !ended.contains_key(&on_0) {
        ended.extend(engine.step());
    }
    assert_eq!(engine.newest(), Some(policy(2)), "adopted when the first was not used any more");
    let refused = engine.submit(Generate { policy: Some(policy(0)), ..request(&prompt, 4, 3) });
    assert_eq!(refused, Err(EngineError::NotServed { policy: policy(0), newest: policy(2) }));
    let on_2 = engine.submit(request(&prompt, 5, 3)).unwrap();
    ended.extend(drain(&mut engine));
    assert_alone(&ended[&on_0], 0, &prompt, 1, 30);
    assert_alone(&ended[&on_1], 1, &prompt, 1, 40);
    assert_alone(&ended[&still_1], 1, &prompt, 2, 3);
    assert_alone(&ended[&pinned], 0, &prompt, 3, 3);
    assert_alone(&ended[&on_2], 2, &prompt, 5, 3);
}

#[test]
fn a_sequence_that_fills_the_cache_alone_needs_no_room_for_a_copy() {
    let mut engine = engine(2, 4, 64);
    let prompt: Vec<u32> = (1..21).collect();
    let ids: Vec<_> = (0..3).map(|seed| engine.submit(request(&prompt, seed, 12)).unwrap()).collect();
    let ended = drain(&mut engine);
    for (seed, id) in ids.iter().enumerate() {
        assert_alone(&ended[id], 0, &prompt, seed as u64, 12);
    }
    assert_eq!(engine.stats().blocks_held, 0);
}

#[test]
fn every_end_has_its_reason() {
    let mut engine = engine(40, 8, 64);
    let prompt = [3, 4];
    // Long enough that any id is sampled somewhere.
    let (ids, _) = alone(0, &prompt, 9, 100);
    let third = char::from_u32('A' as u32 + ids[2]).unwrap().to_string();
    let first_of = |id: u32| ids.iter().position(|x| *x == id).unwrap() + 1;
    let run = |engine: &mut Engine<Fake>, change: &dyn Fn(&mut SamplingParams)| {
        let mut asked = request(&prompt, 9, 100);
        change(&mut asked.sampling);
        let id = engine.submit(asked).unwrap();
        let got = drain(engine).remove(&id).unwrap();
        assert_eq!(got.ids, ids[..got.ids.len()]);
        (got.stop_reason, got.ids.len())
    };
    assert_eq!(run(&mut engine, &|_| ()), (StopReason::Length, 100));
    assert_eq!(run(&mut engine, &|s| s.stop_ids = vec![ids[1]]), (StopReason::Eos, first_of(ids[1])));
    assert_eq!(run(&mut engine, &|s| s.stop = vec![third.clone()]), (StopReason::StopString, first_of(ids[2])));
    assert_eq!(run(&mut engine, &|s| s.ignore_eos = false), (StopReason::Eos, first_of(0)));
    let full: Vec<u32> = vec![1; CONTEXT - 4];
    let id = engine.submit(request(&full, 9, 100)).unwrap();
    let got = drain(&mut engine).remove(&id).unwrap();
    assert_eq!((got.stop_reason, got.ids.len()), (StopReason::Context, 4));
}

#[test]
fn what_cannot_be_done_is_refused_with_its_numbers() {
    let mut small = engine(2, 8, 64);
    let error = |engine: &mut Engine<Fake>, asked| engine.submit(asked).unwrap_err().to_string();
    assert!(error(&mut small, request(&[], 1, 5)).contains("empty"));
    assert!(error(&mut small, request(&[VOCAB], 1, 5)).contains("token id 50 is outside the vocabulary of 50"));
    assert!(error(&mut small, request(&[1; CONTEXT], 1, 5)).contains("120 tokens, the model's context holds 120"));
    assert!(error(&mut small, request(&[1; 30], 1, 5)).contains("need 35 tokens of cache, there are 32"));
    assert!(error(&mut small, request(&[1], 1, 0)).contains("max_new_tokens"));
    let mut empty = Engine::new(Fake::new(2), Arc::new(Letters), EngineConfig::default());
    assert_eq!(empty.submit(request(&[1], 1, 5)), Err(EngineError::NoPolicy));
}

#[test]
fn an_aborted_sequence_leaves_nothing_behind() {
    let mut engine = engine(8, 1, 64);
    let running = engine.submit(request(&[1; 20], 1, 50)).unwrap();
    let waiting = engine.submit(request(&[2; 20], 2, 50)).unwrap();
    engine.step();
    engine.abort(waiting);
    engine.abort(running);
    assert!(engine.is_idle());
    assert_eq!(engine.stats().blocks_held, 0);
}

#[derive(Clone, Debug)]
enum Event {
    Ask { family: u32, len: usize, seed: u64, new: u32 },
    Step,
    Publish,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..3u32, 1..60usize, 0..3u64, 1..40u32).prop_map(|(family, len, seed, new)| Event::Ask { family, len, seed, new }),
        6 => Just(Event::Step),
        1 => Just(Event::Publish),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Arrival order, limits, cache size (down to constant preemption), chunking, sharing and new policies change nothing.
    #[test]
    fn a_request_gives_what_it_gives_alone(
        events in prop::collection::vec(event(), 1..60),
        blocks in 7usize..30,
        sequences in 1usize..9,
        tokens in 1usize..80,
    ) {
        let mut engine = engine(blocks, sequences, tokens);
        let mut asked = HashMap::new();
        let mut ended = HashMap::new();
        let mut published = 0;
        for event in events {
            match event {
                Event::Ask { family, len, seed, new } => {
                    // Prompts of a family share a long beginning; the same (family, len) is the same prompt.
                    let ids: Vec<u32> = (0..len as u32).map(|i| if i == 33 { family } else { i % VOCAB }).collect();
                    let newest = engine.newest().unwrap().step;
                    let id = engine.submit(request(&ids, seed, new)).unwrap();
                    asked.insert(id, (newest, ids, seed, new as usize));
                }
                Event::Step => ended.extend(engine.step()),
                Event::Publish => {
                    published += 1;
                    engine.publish(policy(published), published);
                }
            }
            engine.scheduler.check();
        }
        ended.extend(drain(&mut engine));
        prop_assert_eq!(ended.len(), asked.len());
        for (id, (adapter, ids, seed, new)) in &asked {
            assert_alone(&ended[id], *adapter, ids, *seed, *new);
        }
        engine.scheduler.check();
        prop_assert_eq!(engine.stats().blocks_held, 0);
    }
}
