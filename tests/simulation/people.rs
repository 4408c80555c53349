//! Who takes part in a simulated run besides the real services: the policy that speaks, the reward that judges, the rogue.

use std::time::Duration;

use folgore_actors::{Job, Links, Served};
use folgore_protocol::{
    Digest, Envelope, Generate, Generated, Outcome, PolicyId, PolicyPublished, Prompt, Purpose, RolloutJob, Row,
    RunLength, Scope, ScoreReply, ScoreRequest, Segment, SegmentKind, Source, StopReason, Trajectory, seed, subjects,
};
use folgore_rollout::PromptEncoder;
use tokio::time::sleep;

use super::dice::Dice;

/// Tokens of the vocabulary.
pub const VOCAB: u32 = 256;

/// One id per byte.
pub struct Bytes;

impl PromptEncoder for Bytes {
    fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, String> {
        self.text(prompt.last_text())
    }

    fn text(&self, text: &str) -> Result<Vec<u32>, String> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn own(&self, text: &str) -> Result<Vec<u32>, String> {
        self.text(text)
    }

    fn trace(&self, text: &str) -> Result<Vec<u32>, String> {
        self.text(text)
    }

    fn eos(&self) -> u32 {
        0
    }

    fn decode(&self, ids: &[u32]) -> Result<String, String> {
        Ok(ids.iter().map(|id| format!("{id},")).collect())
    }

    fn vocab_size(&self) -> usize {
        VOCAB as usize
    }

    fn context(&self) -> usize {
        64
    }
}

/// Answers `generate`: after a while, from the request's seed; with a newer policy, its last tokens are that one's.
pub async fn serve_generator(links: &Links) -> Served {
    let state = links.clone();
    let generate = move |request: Generate| {
        let state = state.clone();
        async move {
            let draw = |index, bound| seed::below(request.seed, index, bound);
            let asked = request.policy.ok_or("no policy is published")?;
            sleep(Duration::from_millis(100 + draw(0, 3000))).await;
            if draw(1, 25) == 0 {
                return Err("the engine fell over".to_owned());
            }
            let newest = state.get_state::<PolicyPublished>(subjects::POLICY).await.map_err(|e| e.to_string())?;
            let newest = newest.map_or(asked, |stored| stored.value.policy);
            let (count, late) = (2 + draw(2, 4) as u32, draw(3, 2) as u32);
            let mut policies = RunLength::of(asked, count - late);
            policies.push(if draw(4, 3) == 0 { newest } else { asked }, late);
            let ids = (0..u64::from(count)).map(|i| draw(10 + i, u64::from(VOCAB)) as u32).collect();
            let logprobs = (0..u64::from(count)).map(|i| -seed::uniform(request.seed, 100 + i)).collect();
            Ok(Generated { ids, logprobs, policies, stop_reason: StopReason::Eos })
        }
    };
    links.serve_typed(subjects::GENERATE, 64, generate).await.expect("local links serve")
}

/// Answers `reward`: a small number, or none. In a group, it follows from all that are there.
pub async fn serve_reward(links: &Links) -> Served {
    let score = |request: ScoreRequest| async move {
        let all: Vec<u64> = request.items.iter().map(|item| seed::seat(77, item.id)).collect();
        let (together, fails) = match request.scope {
            Scope::Sample => (0, 14),
            // A failure of one is felt by all.
            Scope::Group => (seed::mix(&all), 28),
        };
        let judge = |seat: folgore_protocol::SeatKey| {
            let own = seed::mix(&[together, seed::seat(77, seat)]);
            match seed::below(own, 0, fails) {
                0 => Outcome::Error { reason: "the reward timed out".into() },
                1 => Outcome::Unscorable { reason: "no gold".into() },
                _ => Outcome::scored("sim", seed::below(own, 1, 3) as f64),
            }
        };
        let outcomes = request.items.iter().map(|item| (item.id, judge(item.id))).collect();
        Ok::<_, String>(ScoreReply { outcomes })
    };
    links.serve_typed(subjects::REWARD, 64, score).await.expect("local links serve")
}

/// A worker that takes jobs and does wrong in every way that its identity lets it.
pub async fn rogue(links: Links, name: String, mut dice: Dice, judge_groups: bool) {
    let mut seen: Vec<RolloutJob> = Vec::new();
    loop {
        sleep(Duration::from_millis(300 + dice.below(2500))).await;
        let Ok(pulled) = links.pull_jobs::<RolloutJob>(subjects::JOBS, 1, Duration::from_secs(1)).await else {
            continue;
        };
        for job in pulled.jobs {
            do_wrong(&links, &name, &job, &seen, &mut dice, judge_groups).await;
            seen.push(job.body.clone());
            // Its ack says that the work is done, whatever was handed in.
            let _ = job.ack().await;
        }
    }
}

async fn do_wrong(
    links: &Links,
    name: &str,
    job: &Job<RolloutJob>,
    seen: &[RolloutJob],
    dice: &mut Dice,
    judge_groups: bool,
) {
    let made_by = match &job.body.purpose {
        Purpose::Train => {
            let stored = links.get_state::<PolicyPublished>(subjects::POLICY).await.ok().flatten();
            let Some(stored) = stored else { return };
            stored.value.policy
        }
        Purpose::Eval { policy, .. } => *policy,
    };
    let mut made = invented(&job.body, name, made_by);
    // Now and then it scores itself all the same.
    if judge_groups && job.body.purpose == Purpose::Train && !dice.one_in(4) {
        made.outcome = Outcome::Unjudged { completion: "the best of all".into(), said: vec![] };
    }
    let sampled = &mut made.rows[0].segments[1];
    match dice.below(9) {
        0 => sampled.logprobs[0] = f32::NAN,
        1 => sampled.ids[0] = VOCAB + 1,
        2 => made.worker = "w0".into(),
        3 => made.token.clear(),
        4 => {
            // Somebody else's seat, with a token of its own.
            let other = seen.get(dice.below(seen.len().max(1) as u64) as usize);
            made.seat = other.map_or(job.body.seat, |other| other.seat);
            made.seat.sample ^= 1;
        }
        5 => {
            sampled.policies =
                RunLength::of(PolicyId { step: made_by.step + 1, digest: Digest::of(b"?"), ..made_by }, 2)
        }
        6 => return,
        7 => {
            let mut envelope = Envelope::new("sim", "no trajectory at all");
            envelope.budget_ms = Some(1);
            let message = folgore_actors::Message { envelope, body: b"\xc1"[..].into() };
            let _ = links.queue.publish(subjects::TRAJECTORIES, message).await;
            return;
        }
        _ => {}
    }
    let _ = links.publish_job(subjects::TRAJECTORIES, &made, &made.seat.to_string()).await;
}

fn invented(job: &RolloutJob, name: &str, policy: PolicyId) -> Trajectory {
    let none = RunLength::default();
    let prompt = Segment { kind: SegmentKind::Prompt, ids: vec![1], logprobs: vec![], policies: none };
    let (ids, logprobs) = (vec![5, 6], vec![-0.5, -0.25]);
    let sampled = Segment { kind: SegmentKind::Sampled, ids, logprobs, policies: RunLength::of(policy, 2) };
    Trajectory {
        seat: job.seat,
        task_id: job.task.id.clone(),
        purpose: job.purpose.clone(),
        rows: vec![Row { segments: vec![prompt, sampled], source: Source::OnPolicy }],
        outcome: Outcome::scored("sim", 2.0),
        stop_reason: StopReason::Eos,
        worker: name.to_owned(),
        duration_ms: 1,
        token: job.token.clone(),
    }
}
