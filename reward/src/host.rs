//! Runs a reward under its deadline and checks what it gives: the one door through which every score passes.

use std::{sync::Arc, time::Duration};

use folgore_protocol::{Outcome, ScoreReply, ScoreRequest};

use crate::{Reward, reward::panic_text};

/// The longest that one request may take, whatever its caller is ready to wait.
pub const MAX_BUDGET: Duration = Duration::from_secs(600);

/// Scores `request` within its budget; gives one outcome for each item, in order, always.
///
/// A reward that is late, panics, gives the wrong number of outcomes or a number that is not finite yields
/// [`Outcome::Error`] for the items concerned.
pub async fn score(reward: Arc<dyn Reward>, request: ScoreRequest) -> ScoreReply {
    let ids: Vec<_> = request.items.iter().map(|item| item.id).collect();
    let name = reward.name().to_owned();
    let outcomes = match within_budget(reward, request).await {
        Ok(outcomes) if outcomes.len() == ids.len() => outcomes.into_iter().map(|o| checked(&name, o)).collect(),
        Ok(outcomes) => {
            let got = outcomes.len();
            failed(&name, ids.len(), format!("expected {} outcomes, got {got}", ids.len()))
        }
        Err(reason) => failed(&name, ids.len(), reason),
    };
    ScoreReply { outcomes: ids.into_iter().zip(outcomes).collect() }
}

async fn within_budget(reward: Arc<dyn Reward>, request: ScoreRequest) -> Result<Vec<Outcome>, String> {
    let budget = Duration::from_millis(request.budget_ms).min(MAX_BUDGET);
    // A task of its own, so that a panic inside the reward's future is contained.
    let mut task = tokio::spawn(async move { reward.score(&request).await });
    match tokio::time::timeout(budget, &mut task).await {
        Ok(Ok(outcomes)) => Ok(outcomes),
        Ok(Err(e)) if e.is_panic() => Err(format!("panicked: {}", panic_text(e.into_panic().as_ref()))),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => {
            task.abort();
            Err(format!("no score within {} ms", budget.as_millis()))
        }
    }
}

/// Passes `outcome` on if all its numbers are finite.
fn checked(name: &str, outcome: Outcome) -> Outcome {
    let (total, parts, answer) = match &outcome {
        Outcome::Scored { total, parts, answer } => (total, parts, answer.clone()),
        Outcome::Unjudged { .. } => {
            return Outcome::Error { reason: format!("reward {name}: expected a judgement, got a completion") };
        }
        Outcome::Unscorable { .. } | Outcome::Error { .. } => return outcome,
    };
    if !total.is_finite() {
        return Outcome::Error { reason: format!("reward {name}: expected a finite score, got {total}") };
    }
    match parts.iter().find(|p| !p.value.is_finite() || !p.weight.is_finite()) {
        // an answer from elsewhere may be of any length
        None => answer.map_or(outcome.clone(), |answer| outcome.with_answer(Some(&answer))),
        Some(p) => Outcome::Error {
            reason: format!(
                "reward {name}: part {}: expected finite numbers, got {} with weight {}",
                p.name, p.value, p.weight
            ),
        },
    }
}

fn failed(name: &str, items: usize, reason: String) -> Vec<Outcome> {
    tracing::warn!(reward = name, items, reason, "reward failed");
    vec![Outcome::Error { reason: format!("reward {name}: {reason}") }; items]
}

#[cfg(test)]
mod tests {
    use folgore_actors::link::BoxFuture;
    use folgore_protocol::Part;

    use super::*;
    use crate::{PerItem, Rule, Scope, samples::item};

    /// What a bad reward may do.
    #[derive(Clone, Copy)]
    enum Fault {
        Panic,
        Never,
        TooFew,
        NotFinite,
        BadPart,
    }

    struct Bad(Fault);

    impl Reward for Bad {
        fn name(&self) -> &str {
            "bad"
        }
        fn scope(&self) -> Scope {
            Scope::Sample
        }
        fn score<'a>(&'a self, request: &'a ScoreRequest) -> BoxFuture<'a, Vec<Outcome>> {
            Box::pin(async move {
                let part = Part { name: "p".into(), value: f64::NAN, weight: 0.0 };
                match self.0 {
                    Fault::Panic => panic!("boom"),
                    Fault::Never => std::future::pending().await,
                    Fault::TooFew => vec![Outcome::scored("bad", 1.0)],
                    Fault::NotFinite => {
                        vec![Outcome::Scored { total: f64::INFINITY, parts: vec![], answer: None }; request.items.len()]
                    }
                    Fault::BadPart => {
                        vec![Outcome::Scored { total: 1.0, parts: vec![part], answer: None }; request.items.len()]
                    }
                }
            })
        }
    }

    fn request(completions: &[&str], budget_ms: u64) -> ScoreRequest {
        let items = completions.iter().enumerate().map(|(i, text)| {
            let mut item = item(text, &[]);
            item.id.sample = i as u32;
            item
        });
        ScoreRequest { items: items.collect(), budget_ms, scope: Scope::Sample }
    }

    #[tokio::test]
    async fn every_fault_becomes_an_error_for_each_item_and_never_a_number() {
        for (fault, budget_ms, want) in [
            (Fault::Panic, 10_000, "panicked: boom"),
            (Fault::Never, 1, "no score within 1 ms"),
            (Fault::TooFew, 10_000, "expected 2 outcomes, got 1"),
            (Fault::NotFinite, 10_000, "finite score, got inf"),
            (Fault::BadPart, 10_000, "part p"),
        ] {
            let reply = score(Arc::new(Bad(fault)), request(&["a", "b"], budget_ms)).await;
            assert_eq!(reply.outcomes.iter().map(|(id, _)| id.sample).collect::<Vec<_>>(), [0, 1]);
            for (_, outcome) in reply.outcomes {
                let Outcome::Error { reason } = outcome else { panic!("{want}: got {outcome:?}") };
                assert!(reason.contains(want), "{reason:?} does not say {want:?}");
            }
        }
    }

    /// Panics on one item only.
    struct Fragile;

    impl Rule for Fragile {
        fn name(&self) -> &str {
            "fragile"
        }
        fn score(&self, item: &folgore_protocol::ScoreItem) -> Outcome {
            assert!(item.completion != "break", "hurt by {}", item.completion);
            Outcome::scored("fragile", 1.0)
        }
    }

    #[tokio::test]
    async fn a_panicking_rule_costs_one_item_and_not_its_neighbours() {
        let reply = score(Arc::new(PerItem::new(Fragile)), request(&["x", "break", "y"], 10_000)).await;
        let totals: Vec<_> = reply.outcomes.iter().map(|(_, o)| o.total()).collect();
        assert_eq!(totals, [Some(1.0), None, Some(1.0)]);
        assert!(matches!(&reply.outcomes[1].1, Outcome::Error { reason } if reason.contains("hurt by break")));
    }
}
