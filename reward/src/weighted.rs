//! The weighted sum of several rewards, which keeps its parts.
//!
//! Any member decides alone when it has no score: an error of one member makes the sum an error; else a member that
//! cannot judge the item makes the sum unscorable; only if all members give a score is there one (Error > Unscorable >
//! Scored). A weight of 0 is a metric: it is shown and not counted, but it must be there like the others.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use folgore_actors::link::BoxFuture;
use folgore_protocol::{Outcome, Part, ScoreRequest};

use crate::{Reward, Scope};

/// A reward with its weight and the name of its part.
struct Member {
    label: String,
    weight: f64,
    reward: Arc<dyn Reward>,
}

/// Sum of `weight * score` over its members, which are asked at the same time.
pub struct Weighted {
    name: String,
    members: Vec<Member>,
}

impl Weighted {
    /// A sum of `members`. Members of one name are told apart as `name`, `name#2`, ...
    pub fn new(members: Vec<(f64, Arc<dyn Reward>)>) -> Self {
        let mut named: Vec<Member> = Vec::with_capacity(members.len());
        for (weight, reward) in members {
            let same = named.iter().filter(|m| m.reward.name() == reward.name()).count();
            let label = if same == 0 { reward.name().to_owned() } else { format!("{}#{}", reward.name(), same + 1) };
            named.push(Member { label, weight, reward });
        }
        let name = named.iter().map(|m| m.label.as_str()).collect::<Vec<_>>().join("+");
        Self { name, members: named }
    }
}

impl Reward for Weighted {
    fn name(&self) -> &str {
        &self.name
    }

    fn scope(&self) -> Scope {
        if self.members.iter().any(|m| m.reward.scope() == Scope::Group) { Scope::Group } else { Scope::Sample }
    }

    fn score<'a>(&'a self, request: &'a ScoreRequest) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let columns = join_all(self.members.iter().map(|m| m.reward.score(request)).collect()).await;
            for (member, outcomes) in self.members.iter().zip(&columns) {
                if outcomes.len() != request.items.len() {
                    let (want, got) = (request.items.len(), outcomes.len());
                    let reason = format!("reward {}: expected {want} outcomes, got {got}", member.label);
                    return vec![Outcome::Error { reason }; want];
                }
            }
            let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
            let rows = request.items.iter().map(|_| columns.iter_mut().filter_map(Iterator::next).collect());
            rows.map(|row| combine(&self.members, row)).collect()
        })
    }
}

/// The sum for one item from the outcome of each member.
fn combine(members: &[Member], outcomes: Vec<Outcome>) -> Outcome {
    let mut parts = Vec::new();
    let mut unscorable = None;
    for (member, outcome) in members.iter().zip(outcomes) {
        match outcome {
            Outcome::Error { .. } => return outcome,
            Outcome::Unscorable { .. } => unscorable = unscorable.or(Some(outcome)),
            Outcome::Scored { total, parts: inner } => {
                parts.push(Part { name: member.label.clone(), value: total, weight: member.weight });
                // What a member tells of itself is kept to be shown; its weight in this sum is the member's.
                let shown = inner.into_iter().filter(|p| p.name != member.reward.name());
                parts.extend(shown.map(|p| Part { name: format!("{}/{}", member.label, p.name), weight: 0.0, ..p }));
            }
        }
    }
    if let Some(outcome) = unscorable {
        return outcome;
    }
    let total: f64 = parts.iter().map(|p| p.value * p.weight).sum();
    if total.is_finite() {
        Outcome::Scored { total, parts }
    } else {
        Outcome::Error { reason: format!("weighted reward: expected a finite sum, got {total}") }
    }
}

/// Waits for all `futures`, which progress together; results in their order.
async fn join_all<T: Unpin>(mut futures: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(|context: &mut Context<'_>| {
        for (future, slot) in futures.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *slot = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::item;

    struct Fixed(&'static str, Outcome, Scope);

    impl Reward for Fixed {
        fn name(&self) -> &str {
            self.0
        }
        fn scope(&self) -> Scope {
            self.2
        }
        fn score<'a>(&'a self, request: &'a ScoreRequest) -> BoxFuture<'a, Vec<Outcome>> {
            Box::pin(async move {
                tokio::task::yield_now().await;
                vec![self.1.clone(); request.items.len()]
            })
        }
    }

    fn fixed(name: &'static str, outcome: Outcome) -> Arc<dyn Reward> {
        Arc::new(Fixed(name, outcome, Scope::Sample))
    }

    async fn sum_of(members: Vec<(f64, Arc<dyn Reward>)>) -> Outcome {
        let request = ScoreRequest { items: vec![item("x", &[]), item("y", &[])], budget_ms: 1000 };
        let outcomes = Weighted::new(members).score(&request).await;
        assert_eq!(outcomes.len(), 2);
        outcomes.into_iter().next().unwrap()
    }

    #[tokio::test]
    async fn the_sum_keeps_its_parts_and_equals_them() {
        let parts = vec![
            Part { name: "b".into(), value: -1.0, weight: 1.0 },
            Part { name: "acc".into(), value: 0.0, weight: 0.0 },
        ];
        let with_metric = Outcome::Scored { total: -1.0, parts };
        let members = vec![
            (2.0, fixed("a", Outcome::scored("a", 0.5))),
            (0.25, fixed("b", with_metric)),
            (1.0, fixed("a", Outcome::scored("a", 3.0))),
        ];
        let Outcome::Scored { total, parts } = sum_of(members).await else { panic!("no score") };
        assert_eq!(total, 2.0 * 0.5 - 0.25 + 3.0);
        assert_eq!(parts.iter().map(|p| p.value * p.weight).sum::<f64>(), total);
        assert_eq!(parts.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["a", "b", "b/acc", "a#2"]);
    }

    #[tokio::test]
    async fn a_member_without_a_score_decides_the_whole() {
        let scored = || (1.0, fixed("a", Outcome::scored("a", 1.0)));
        let unscorable = || (0.0, fixed("u", Outcome::Unscorable { reason: "gold".into() }));
        let error = || (1.0, fixed("e", Outcome::Error { reason: "late".into() }));
        assert!(matches!(sum_of(vec![scored(), unscorable()]).await, Outcome::Unscorable { .. }));
        assert!(matches!(sum_of(vec![unscorable(), scored(), error()]).await, Outcome::Error { .. }));
        let huge = (10.0, fixed("h", Outcome::scored("h", 1e308)));
        assert!(matches!(sum_of(vec![scored(), huge]).await, Outcome::Error { .. }));
    }

    #[test]
    fn one_member_that_needs_groups_makes_the_sum_need_them() {
        let group: Arc<dyn Reward> = Arc::new(Fixed("g", Outcome::scored("g", 1.0), Scope::Group));
        assert_eq!(Weighted::new(vec![(1.0, fixed("a", Outcome::scored("a", 1.0)))]).scope(), Scope::Sample);
        assert_eq!(
            Weighted::new(vec![(1.0, fixed("a", Outcome::scored("a", 1.0))), (1.0, group)]).scope(),
            Scope::Group
        );
    }
}
