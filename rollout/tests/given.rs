//! Seats that begin with what the policy does not say: an expert's trace, whole or in part, judged before it is used; and the
//! policy's own successes, of which the one that it is surest of is taken.

mod common;

use common::*;
use folgore_protocol::*;
use folgore_rollout::{Environments, RolloutWorker, WorkerConfig};

fn worker() -> RolloutWorker {
    let config = WorkerConfig { name: Some("w".into()), ..WorkerConfig::default() };
    RolloutWorker::new(config, std::sync::Arc::new(Bytes), Environments::builtin())
}

fn trace(turns: &[&str], share: f64, min_reward: Option<f64>) -> Option<Given> {
    Some(Given::Trace { turns: turns.iter().map(|turn| (*turn).to_owned()).collect(), share, min_reward })
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[tokio::test]
async fn a_trace_is_played_scored_and_handed_in_as_a_teachers() {
    let (links, _folder) = links();
    publish_policy(&links, 3).await;
    let (_generator, asked) = serve_generator(&links, |r| Ok(generated("5", r.policy.unwrap()))).await;
    let _reward = serve_reward(&links, "4\0").await;
    let (_context, _end) = spawn(worker(), "rollout-0", &links);
    issue(&links, &RolloutJob { given: trace(&["4"], 1.0, Some(1.0)), ..job(1, "2+2=") }).await;
    let got = trajectory(&links).await;
    assert_eq!((got.source(), got.outcome.total(), got.stop_reason), (Source::Teacher, Some(1.0), StopReason::Eos));
    let said = &got.rows[0].segments[1];
    assert_eq!(
        (said.ids.clone(), said.kind),
        (vec![u32::from(b'4'), 0], SegmentKind::Sampled),
        "with the id that ends a turn"
    );
    assert!(said.logprobs.is_empty() && got.policies().is_empty());
    assert!(asked.lock().unwrap().is_empty(), "nobody sampled anything");
}

#[tokio::test]
async fn a_tag_that_the_prompt_ends_with_is_not_said_again() {
    let (links, _folder) = links();
    publish_policy(&links, 3).await;
    let _reward = serve_reward(&links, "2+2</think>4\0").await;
    let (_context, _end) = spawn(worker(), "rollout-0", &links);
    let given = trace(&["<think>\n2+2</think>4"], 1.0, Some(1.0));
    issue(&links, &RolloutJob { given, ..job(1, "2+2= <think>\n") }).await;
    let got = trajectory(&links).await;
    assert_eq!((got.source(), got.stop_reason), (Source::Teacher, StopReason::Eos));
    assert_eq!(got.rows[0].segments[1].ids, bytes("2+2</think>4\0"));
}

#[tokio::test]
async fn a_trace_that_is_not_worth_enough_or_not_usable_leaves_its_seat_to_the_policy() {
    let (links, _folder) = links();
    publish_policy(&links, 3).await;
    let (_generator, asked) = serve_generator(&links, |r| Ok(generated("4", r.policy.unwrap()))).await;
    let _reward = serve_reward(&links, "4").await;
    let (_context, _end) = spawn(worker(), "rollout-0", &links);
    let long = "x".repeat(CONTEXT);
    for (i, given) in
        [trace(&["5"], 1.0, Some(1.0)), trace(&[&long], 1.0, None), trace(&[], 1.0, None)].into_iter().enumerate()
    {
        issue(&links, &RolloutJob { given, ..job(i as u64, "2+2=") }).await;
        let got = trajectory(&links).await;
        assert_eq!((got.source(), got.outcome.total()), (Source::OnPolicy, Some(1.0)), "{i}");
    }
    assert_eq!(asked.lock().unwrap().len(), 3);
    // without a threshold a wrong one is used, and worth what it is worth
    issue(&links, &RolloutJob { given: trace(&["5"], 1.0, None), ..job(9, "2+2=") }).await;
    let got = trajectory(&links).await;
    assert_eq!((got.source(), got.outcome.total()), (Source::Teacher, Some(0.0)));
}

#[tokio::test]
async fn the_policy_goes_on_where_a_part_of_a_trace_ends() {
    let (links, _folder) = links();
    publish_policy(&links, 3).await;
    let (_generator, asked) = serve_generator(&links, |r| Ok(generated("ef", r.policy.unwrap()))).await;
    let _reward = serve_reward(&links, "abef").await;
    let (_context, _end) = spawn(worker(), "rollout-0", &links);
    let sampling = SamplingParams { max_new_tokens: 8, ..SamplingParams::default() };
    issue(&links, &RolloutJob { given: trace(&["abcd"], 0.5, None), sampling, ..job(1, "q") }).await;
    let got = trajectory(&links).await;
    let row = &got.rows[0];
    let origins: Vec<Source> = row.segments[1..].iter().map(|segment| row.origin(segment)).collect();
    assert_eq!((origins, row.source), (vec![Source::Teacher, Source::OnPolicy], Source::Teacher));
    assert_eq!((row.segments[1].ids.clone(), got.outcome.total()), (bytes("ab"), Some(1.0)));
    assert_eq!(got.policies(), [policy(3)], "what it sampled is as old as its policy");
    let asked = asked.lock().unwrap();
    assert_eq!((asked[0].ids.clone(), asked[0].sampling.max_new_tokens), (bytes("qab"), 6));
}

#[tokio::test]
async fn searches_of_a_trace_are_carried_out_and_what_comes_back_is_observed() {
    let (links, _folder) = links();
    publish_policy(&links, 0).await;
    let (_generator, asked) = serve_generator(&links, |r| Ok(generated("?", r.policy.unwrap()))).await;
    let search = |search: Search| async move {
        let passage = Passage { id: "1".into(), title: "t".into(), text: search.query, score: 1.0 };
        Ok::<_, String>(Passages { passages: vec![passage] })
    };
    let _search = links.serve_typed(subjects::SEARCH, 2, search).await.unwrap();
    let _reward = serve_reward(&links, "<search>x</search><answer>y</answer>").await;
    let (_context, _end) = spawn(worker(), "rollout-0", &links);
    let said = "<search>x</search>\n\n<information>what the expert saw</information>\n\n<answer>y</answer>";
    let sampling = SamplingParams { max_new_tokens: 60, ..SamplingParams::default() };
    issue(
        &links,
        &RolloutJob { environment: "search".into(), given: trace(&[said], 1.0, None), sampling, ..job(1, "q") },
    )
    .await;
    let got = trajectory(&links).await;
    let kinds: Vec<_> = got.rows[0].segments.iter().map(|s| s.kind).collect();
    use SegmentKind::*;
    assert_eq!(kinds, [Prompt, Sampled, Observed, Sampled]);
    let observed = Bytes.decode_lossy(&got.rows[0].segments[2].ids);
    assert!(observed.contains("Doc 1(Title: t) x") && !observed.contains("expert"), "{observed}");
    assert_eq!((got.outcome.total(), got.stop_reason), (Some(1.0), StopReason::StopString));
    assert!(asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn of_earlier_successes_the_one_that_the_policy_is_surest_of_comes_back_as_it_was() {
    let (links, _folder) = links();
    publish_policy(&links, 7).await;
    let measure = |request: Measure| async move {
        assert_eq!((request.policy, request.temperature), (Some(policy(7)), 1.0));
        // the first has two tokens and more entropy in all, but less of it a token
        let rows = request.rows.iter().map(|row| {
            let end = row.ids.len() as u32;
            assert!(row.said.len() == 1 && row.said[0] == (1..end), "{:?}", row.said);
            let tokens = end - 1;
            Entropy { sum: if tokens == 2 { 1.0 } else { 0.9 }, tokens }
        });
        Ok::<_, String>(Measured { rows: rows.collect() })
    };
    let _measured = links.serve_typed(subjects::MEASURE, 2, measure).await.unwrap();
    let _reward = serve_reward(&links, "ab").await;
    let (_context, _end) = spawn(worker(), "rollout-0", &links);
    let success = |text: &str| {
        let prompt =
            Segment { kind: SegmentKind::Prompt, ids: vec![1], logprobs: vec![], policies: RunLength::default() };
        let Generated { ids, logprobs, policies, .. } = generated(text, policy(2));
        let said = Segment { kind: SegmentKind::Sampled, ids, logprobs, policies };
        Past {
            rows: vec![Row { segments: vec![prompt, said], source: Source::OnPolicy }],
            stop_reason: StopReason::Length,
        }
    };
    let past = vec![success("a"), success("ab")];
    let before = past[1].rows[0].segments.clone();
    issue(&links, &RolloutJob { given: Some(Given::Experience { past }), ..job(1, "q") }).await;
    let got = trajectory(&links).await;
    assert_eq!((got.source(), got.stop_reason, got.outcome.total()), (Source::Replay, StopReason::Length, Some(1.0)));
    assert_eq!(got.rows[0].segments, before);
    assert!(got.policies().is_empty());
}
