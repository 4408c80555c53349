//! The vectors of ExGRPO that are about its store: the law of buckets, what is drawn beyond a bucket, the life of a question,
//! and how many are replayed.

use std::collections::BTreeMap;

use folgore_config::replay::{BucketLaw, Experience};
use folgore_learner::replay::experience::{Pool, Success, bucket_probabilities, cap, replayed_questions};
use folgore_protocol::{Prompt, Task};
use serde_json::Value;

fn vectors() -> Value {
    let all: Value = serde_json::from_str(include_str!("data/off_policy_vectors.json")).unwrap();
    all["exgrpo"].clone()
}

fn by_bucket(v: &Value) -> BTreeMap<u32, f64> {
    v.as_object().unwrap().iter().map(|(k, x)| (k.parse().unwrap(), x.as_f64().unwrap())).collect()
}

fn sizes(v: &Value) -> BTreeMap<u32, usize> {
    by_bucket(v).into_iter().map(|(k, size)| (k, size as usize)).collect()
}

#[track_caller]
fn same(got: &BTreeMap<u32, f64>, want: &BTreeMap<u32, f64>) {
    assert!(got.keys().eq(want.keys()), "{got:?} {want:?}");
    for (k, p) in want {
        assert!((got[k] - p).abs() < 1e-11, "{k}: expected {p}, got {}", got[k]);
    }
}

#[test]
fn buckets_are_drawn_by_a_gaussian_of_the_successes() {
    let all = vectors();
    let seven = by_bucket(&all["bucket_probability_all_seven_buckets_nonempty"]);
    let full: BTreeMap<u32, usize> = (0..=8).map(|k| (k, usize::from((1..=7).contains(&k)))).collect();
    same(&bucket_probabilities(BucketLaw::Normal, 8, &full), &seven);
    let case = &all["bucket_probability_sizes"];
    same(&bucket_probabilities(BucketLaw::Normal, 8, &sizes(&case["sizes"])), &by_bucket(&case["probability"]));
    let linear = bucket_probabilities(BucketLaw::Linear, 8, &BTreeMap::from([(2, 1), (6, 9)]));
    same(&linear, &BTreeMap::from([(2, 0.25), (6, 0.75)]));
}

#[test]
fn what_a_bucket_does_not_hold_is_drawn_again() {
    let case = &vectors()["bucket_oversubscription"];
    let read = |key: &str| -> BTreeMap<u32, usize> {
        (0..).zip(case[key].as_array().unwrap()).map(|(i, x)| (i, x.as_u64().unwrap() as usize)).collect()
    };
    let mut drawn = read("drawn");
    let excess = cap(&mut drawn, &read("sizes"));
    assert_eq!((drawn, excess as u64), (read("after_cap"), case["excess_to_redraw"].as_u64().unwrap()));
}

#[test]
fn the_life_of_a_question() {
    let case = &vectors()["buffer_state_machine"];
    let members = case["n_rollouts"].as_u64().unwrap() as u32;
    let settings = Experience { min_live_questions: 1, ..Experience::default() };
    let mut pool = Pool::new(settings, members, 100, BTreeMap::new());
    for (step, event) in (1..).zip(case["events"].as_array().unwrap()) {
        let (id, successes) = (event["question"].as_str().unwrap(), event["successes"].as_u64().unwrap() as u32);
        let task = Task { id: id.into(), prompt: Prompt::Text(id.into()), columns: Default::default() };
        let fresh: Vec<Success> =
            (0..successes).map(|sample| Success { sample, fingerprint: step * 100 + u64::from(sample) }).collect();
        pool.visited(&task, successes, &fresh, true, (step, step * 100));
        for id in ["q1", "q2", "q3", "q4"] {
            let kept = pool.question(id).filter(|q| !q.past.is_empty());
            assert_eq!(kept.map(|q| u64::from(q.successes)), event["bucket_of"][id].as_u64(), "{event}: {id}");
            let retired = event["retired"].as_array().unwrap().iter().any(|x| x == id);
            assert_eq!(pool.is_retired(id), retired, "{event}: {id}");
        }
    }
}

#[test]
fn half_of_a_batch_is_replayed_at_most() {
    let case = &vectors()["mini_batch_mix"];
    let (prompts, ratio) = (case["batch_questions"].as_u64().unwrap() as u32, case["rho"].as_f64().unwrap());
    for (live, want) in
        case["pool_sizes"].as_array().unwrap().iter().zip(case["replayed_questions"].as_array().unwrap())
    {
        let live = live.as_u64().unwrap() as usize;
        assert_eq!(replayed_questions(prompts, ratio, live) as u64, want.as_u64().unwrap());
    }
}
