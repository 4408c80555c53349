//! Rules by name, and the reward that a configuration asks for.

use std::{collections::BTreeMap, sync::Arc};

use folgore_config::{RewardScope, RewardSpec};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{PerItem, Reward, RewardError, Rule, Weighted, external, reward::scope_of, rules};

type Build = fn(Map<String, Value>) -> Result<Arc<dyn Reward>, String>;

/// All rules, by name. Sorted, as they are shown.
const RULES: &[(&str, Build)] = &[
    ("countdown", |args| rule(args, rules::countdown::Countdown::new)),
    ("dapo_math", |args| rule(args, rules::dapo_math::DapoMath::new)),
    ("exact_match", |args| rule(args, rules::exact_match::ExactMatch::new)),
    ("gsm8k", |args| rule(args, rules::gsm8k::Gsm8k::new)),
    ("length", |args| rule(args, rules::length::Length::new)),
    ("math", |args| rule(args, rules::math::Math::new)),
    ("numeric", |args| rule(args, rules::numeric::Numeric::new)),
    ("search_em", |args| rule(args, rules::search_em::new)),
    ("search_f1", |args| rule(args, rules::search_f1::new)),
    ("search_format", |args| rule(args, rules::search_format::SearchFormat::new)),
    ("search_subem", |args| rule(args, rules::search_subem::new)),
    ("soft_overlong_punishment", |args| rule(args, rules::soft_overlong_punishment::SoftOverlongPunishment::new)),
    ("think_format", |args| rule(args, rules::think_format::ThinkFormat::new)),
];

fn rule<A: DeserializeOwned, R: Rule>(
    args: Map<String, Value>,
    new: impl FnOnce(A) -> Result<R, String>,
) -> Result<Arc<dyn Reward>, String> {
    let args = serde_json::from_value(Value::Object(args)).map_err(|e| e.to_string())?;
    Ok(Arc::new(PerItem::new(new(args)?)))
}

/// Names of all rules, sorted.
pub fn rule_names() -> impl Iterator<Item = &'static str> {
    built_in()
}

fn built_in<'a>() -> impl Iterator<Item = &'a str> {
    RULES.iter().map(|(name, _)| *name)
}

/// Makes a reward of the arguments that a configuration gives it.
type Maker = dyn Fn(&Map<String, Value>) -> Result<Arc<dyn Reward>, String> + Send + Sync;

/// The rewards that the executable holds: the built-in rules, and those that a program of its own brings along.
#[derive(Clone, Default)]
pub struct Rewards {
    own: BTreeMap<String, Arc<Maker>>,
}

impl Rewards {
    /// Adds the reward `name`, which `make` builds from its arguments.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn add(
        &mut self,
        name: &str,
        make: impl Fn(&Map<String, Value>) -> Result<Arc<dyn Reward>, String> + Send + Sync + 'static,
    ) -> Result<(), RewardError> {
        if name.is_empty() || self.names().any(|known| known == name) {
            return Err(RewardError::Taken { name: name.to_owned() });
        }
        self.own.insert(name.to_owned(), Arc::new(make));
        Ok(())
    }

    /// Names of all rewards, the built-in ones first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        built_in().chain(self.own.keys().map(String::as_str))
    }

    /// Builds the weighted sum of `specs`; its parts have the names of the rewards.
    ///
    /// # Errors
    /// If the list is empty, a name is not known (the nearest one is suggested), an argument is not one that the rule takes,
    /// a reward elsewhere cannot be reached as described, or a weight is not finite.
    pub fn build(&self, specs: &[RewardSpec]) -> Result<Arc<dyn Reward>, RewardError> {
        if specs.is_empty() {
            return Err(RewardError::Empty { known: self.known() });
        }
        let members = specs.iter().map(|spec| Ok((weight(spec)?, self.member(spec)?)));
        Ok(Arc::new(Weighted::new(members.collect::<Result<_, RewardError>>()?)))
    }

    /// Looks whether what `specs` name elsewhere is on this machine, where it is about to be asked.
    ///
    /// # Errors
    /// What is missing, as far as can be told without running it.
    pub fn look(specs: &[RewardSpec]) -> Result<(), RewardError> {
        specs.iter().try_for_each(|spec| {
            external::look(spec).map_err(|reason| RewardError::Args { name: spec.name.clone(), reason })
        })
    }

    fn member(&self, spec: &RewardSpec) -> Result<Arc<dyn Reward>, RewardError> {
        let name = spec.name.as_str();
        let wrong = |reason| RewardError::Args { name: name.to_owned(), reason };
        if let Some(elsewhere) = external::build(spec).map_err(wrong)? {
            return Ok(elsewhere);
        }
        let made = if let Some((_, build)) = RULES.iter().find(|(known, _)| *known == name) {
            build(spec.args.clone())
        } else if let Some(make) = self.own.get(name) {
            make(&spec.args)
        } else {
            return Err(RewardError::Unknown { name: name.to_owned(), hint: self.hint(name), known: self.known() });
        };
        let made = made.map_err(wrong)?;
        if spec.scope != RewardScope::default() && made.scope() != scope_of(spec.scope) {
            return Err(wrong("scope: it judges each completion by itself".to_owned()));
        }
        Ok(made)
    }

    fn known(&self) -> String {
        self.names().collect::<Vec<_>>().join(", ")
    }

    /// `, did you mean "..."?` if a reward has a name near enough.
    fn hint(&self, name: &str) -> String {
        let distance = |known: &str| strsim::damerau_levenshtein(&name.to_lowercase(), known);
        match self.names().map(|known| (distance(known), known)).min() {
            Some((distance, known)) if distance <= known.len() / 3 + 1 => format!(", did you mean {known:?}?"),
            _ => String::new(),
        }
    }
}

/// [`Rewards::build`] with the built-in rules alone.
///
/// # Errors
/// As there.
pub fn build(specs: &[RewardSpec]) -> Result<Arc<dyn Reward>, RewardError> {
    Rewards::default().build(specs)
}

fn weight(spec: &RewardSpec) -> Result<f64, RewardError> {
    let RewardSpec { name, weight, .. } = spec;
    if weight.is_finite() { Ok(*weight) } else { Err(RewardError::Weight { name: name.clone(), weight: *weight }) }
}

#[cfg(test)]
mod tests {
    use folgore_protocol::{Scope, ScoreRequest};
    use serde_json::json;

    use super::*;
    use crate::samples::item;

    fn spec(name: &str, weight: f64, args: Value) -> RewardSpec {
        let Value::Object(args) = args else { panic!("arguments are an object") };
        RewardSpec { weight, args, ..RewardSpec::held(name) }
    }

    fn error(specs: &[RewardSpec]) -> String {
        match build(specs) {
            Ok(reward) => panic!("expected an error, got {}", reward.name()),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn mistakes_are_named_with_the_way_out() {
        assert!(error(&[spec("exact_mach", 1.0, json!({}))]).contains("did you mean \"exact_match\"?"));
        assert!(error(&[spec("Math", 1.0, json!({}))]).contains("did you mean \"math\"?"));
        let far = error(&[spec("perplexity", 1.0, json!({}))]);
        assert!(!far.contains("did you mean") && far.contains("countdown, dapo_math"), "{far}");
        assert!(error(&[spec("math", 1.0, json!({"tolerence": 1}))]).contains("`tolerence`"));
        assert!(error(&[spec("math", f64::NAN, json!({}))]).contains("finite weight"));
        assert!(error(&[spec("length", 1.0, json!({}))]).contains("target or cap"));
        assert!(error(&[]).contains("at least one rule"));
    }

    #[test]
    fn names_are_sorted_and_every_rule_is_known_by_its_own() {
        assert!(rule_names().is_sorted());
        for (name, build) in RULES {
            let args = match *name {
                "length" => json!({"cap": 10}),
                "soft_overlong_punishment" => json!({"max_completion_length": 10, "buffer": 5}),
                _ => json!({}),
            };
            let Value::Object(args) = args else { unreachable!() };
            assert_eq!(build(args).map(|r| r.name().to_owned()), Ok((*name).to_owned()));
        }
    }

    #[tokio::test]
    async fn a_reward_that_was_added_is_found_by_its_name() {
        let mut rewards = Rewards::default();
        let same = |_: &Map<String, Value>| rule(Map::new(), rules::numeric::Numeric::new);
        assert!(matches!(rewards.add("numeric", same), Err(RewardError::Taken { .. })));
        rewards
            .add("mine", |args| match args.get("weight") {
                None => rule(Map::new(), rules::numeric::Numeric::new),
                Some(_) => Err("unknown argument weight".to_owned()),
            })
            .unwrap();
        assert!(rewards.add("mine", same).is_err());
        assert!(rewards.build(&[spec("mine", 1.0, json!({}))]).is_ok());
        let wrong = |specs: &[RewardSpec]| rewards.build(specs).err().unwrap().to_string();
        assert!(wrong(&[spec("mine", 1.0, json!({"weight": 1}))]).contains("reward mine: unknown argument weight"));
        assert!(wrong(&[spec("mime", 1.0, json!({}))]).contains("did you mean \"mine\"?"));
        assert!(error(&[spec("mine", 1.0, json!({}))]).contains("no rule \"mine\""));
        let group = RewardSpec { scope: RewardScope::Group, ..RewardSpec::held("mine") };
        assert!(wrong(&[group]).contains("scope"));
    }

    #[tokio::test]
    async fn a_configured_sum_scores_a_completion() {
        let specs = [
            spec("exact_match", 1.0, json!({"tag": "answer"})),
            spec("think_format", 0.5, json!({})),
            spec("length", 1.0, json!({"cap": 0, "width": 10, "factor": 0.5})),
        ];
        let mut item = item("<think></think><answer>7</answer>", &[("answer", json!("7"))]);
        item.completion_ids = vec![1; 5];
        let request = ScoreRequest { items: vec![item], budget_ms: 1000, scope: Scope::Sample };
        let outcome = build(&specs).unwrap().score(&request).await.remove(0);
        assert_eq!(outcome.total(), Some(1.0 + 0.5 - 0.25));
    }
}
