//! The weighted sum of several rewards, which keeps its parts.
//!
//! Any member decides alone when it has no score: an error of one member makes the sum an error; else a member that
//! cannot judge the item makes the sum unscorable; only if all members give a score is there one (Error > Unscorable >
//! Scored). The answer is that of the first member which reads one. A weight of 0 is a metric: it is shown and not counted, but it must be there like the others.
//!
//! Of members that compare completions and members that do not, a group is judged by all, and completions by themselves (as
//! evaluations ask) by the latter alone; where these have no weight among them, each counts as 1 there.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use folgore_actors::link::BoxFuture;
use folgore_protocol::{Outcome, Part, ScoreItem, ScoreRequest};

use crate::{Reward, Scope};

/// A reward with its weight and the name of its part.
struct Member {
    label: String,
    weight: f64,
    reward: Arc<dyn Reward>,
}

/// Sum of `weight * score` over its members, which are asked at the same time: about a group those that compare as a whole, the
/// others about each of its members.
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

impl Weighted {
    /// Who judges a request of `scope`, with their weights.
    fn asked(&self, scope: Scope) -> Vec<(&Member, f64)> {
        let fits = |m: &&Member| scope == Scope::Group || m.reward.judges_alone();
        let asked: Vec<(&Member, f64)> = self.members.iter().filter(fits).map(|m| (m, m.weight)).collect();
        let weightless = asked.len() < self.members.len() && asked.iter().all(|(_, weight)| *weight == 0.0);
        if weightless { asked.into_iter().map(|(m, _)| (m, 1.0)).collect() } else { asked }
    }
}

impl Reward for Weighted {
    fn name(&self) -> &str {
        &self.name
    }

    fn scope(&self) -> Scope {
        if self.members.iter().any(|m| m.reward.scope() == Scope::Group) { Scope::Group } else { Scope::Sample }
    }

    fn judges_alone(&self) -> bool {
        self.members.iter().any(|m| m.reward.judges_alone())
    }

    fn score<'a>(&'a self, request: &'a ScoreRequest) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let asked = self.asked(request.scope);
            if asked.is_empty() {
                let reason = format!("reward {}: it compares the completions of a group with each other", self.name);
                return vec![Outcome::Unscorable { reason }; request.items.len()];
            }
            let (whole, single) = (std::slice::from_ref(request), singles(request));
            let alone = |m: &Member| request.scope == Scope::Group && m.reward.scope() == Scope::Sample;
            let ask = |m| -> BoxFuture<'_, _> { Box::pin(score(m, if alone(m) { &single } else { whole })) };
            let columns = join_all(asked.iter().map(|(m, _)| ask(m)).collect()).await;
            let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
            let rows = request.items.iter().map(|_| columns.iter_mut().filter_map(Iterator::next).collect());
            rows.map(|row| combine(&asked, row)).collect()
        })
    }
}

/// The items of a group one by one: who judges each by itself has time and attempts for each.
fn singles(request: &ScoreRequest) -> Vec<ScoreRequest> {
    let single = |item: &ScoreItem| ScoreRequest { items: vec![item.clone()], scope: Scope::Sample, ..*request };
    let items: &[ScoreItem] = if request.scope == Scope::Group { &request.items } else { &[] };
    items.iter().map(single).collect()
}

/// What `member` says to `requests`, which it is asked at the same time: one outcome for each of their items, in order.
async fn score(member: &Member, requests: &[ScoreRequest]) -> Vec<Outcome> {
    let replies = join_all(requests.iter().map(|request| member.reward.score(request)).collect()).await;
    let whole = |(request, outcomes): (&ScoreRequest, Vec<Outcome>)| {
        let (want, got) = (request.items.len(), outcomes.len());
        if want == got {
            return outcomes;
        }
        let reason = format!("reward {}: expected {want} outcomes, got {got}", member.label);
        vec![Outcome::Error { reason }; want]
    };
    requests.iter().zip(replies).flat_map(whole).collect()
}

/// The sum for one item from the outcome of each member.
fn combine(asked: &[(&Member, f64)], outcomes: Vec<Outcome>) -> Outcome {
    let mut parts = Vec::new();
    let (mut unscorable, mut answer) = (None, None);
    for ((member, weight), outcome) in asked.iter().zip(outcomes) {
        match outcome {
            Outcome::Error { .. } | Outcome::Unjudged { .. } => return outcome,
            Outcome::Unscorable { .. } => unscorable = unscorable.or(Some(outcome)),
            Outcome::Scored { total, parts: inner, answer: read } => {
                answer = answer.or(read);
                parts.push(Part { name: member.label.clone(), value: total, weight: *weight });
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
        Outcome::Scored { total, parts, answer }
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
        let request =
            ScoreRequest { items: vec![item("x", &[]), item("y", &[])], budget_ms: 1000, scope: Scope::Sample };
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
        let with_metric = Outcome::Scored { total: -1.0, parts, answer: Some("7".into()) };
        let members = vec![
            (2.0, fixed("a", Outcome::scored("a", 0.5))),
            (0.25, fixed("b", with_metric)),
            (1.0, fixed("a", Outcome::scored("a", 3.0))),
        ];
        let Outcome::Scored { total, parts, answer } = sum_of(members).await else { panic!("no score") };
        assert_eq!(answer.as_deref(), Some("7"), "of the only member that reads one");
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

    #[tokio::test]
    async fn completions_by_themselves_are_judged_by_those_that_can() {
        let group = |score| -> Arc<dyn Reward> { Arc::new(Fixed("g", Outcome::scored("g", score), Scope::Group)) };
        let alone = |score| fixed("a", Outcome::scored("a", score));
        let ask = async |members: Vec<(f64, Arc<dyn Reward>)>, scope| {
            let request = ScoreRequest { items: vec![item("x", &[]), item("y", &[])], scope, budget_ms: 1000 };
            Weighted::new(members).score(&request).await.remove(0)
        };
        let both = |weight| vec![(1.0, group(8.0)), (weight, alone(0.5))];
        assert_eq!(ask(both(2.0), Scope::Group).await.total(), Some(9.0));
        assert_eq!(ask(both(2.0), Scope::Sample).await.total(), Some(1.0));
        assert_eq!(ask(both(0.0), Scope::Group).await.total(), Some(8.0));
        assert_eq!(ask(both(0.0), Scope::Sample).await.total(), Some(0.5), "a second scorer counts in evaluations");
        assert_eq!(ask(vec![(0.0, alone(0.5))], Scope::Sample).await.total(), Some(0.0), "where nothing is left out");
        assert!(matches!(ask(vec![(1.0, group(8.0))], Scope::Sample).await, Outcome::Unscorable { .. }));
        assert!(Weighted::new(both(1.0)).judges_alone() && !Weighted::new(vec![(1.0, group(1.0))]).judges_alone());
    }
}
