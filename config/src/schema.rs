//! The names of all keys, read off the defaults, and how a written name becomes one of them.

use serde_json::Value;

use crate::{Config, alias};

/// What stands at a path of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Keys with defaults of their own.
    Section,
    /// A value, be it a list or a mapping that the user fills freely.
    Leaf,
}

/// Why a name is not a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NameFault {
    /// No key has the name; the advice begins with a separator, or is empty.
    Unknown { advice: String },
    /// Several keys end so.
    Ambiguous { candidates: Vec<String> },
}

/// A key found: its path, and the name it was given if that was another program's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Names from the root.
    pub path: Vec<String>,
    /// True if the name was an alias.
    pub alias: bool,
}

/// The tree of keys.
pub(crate) struct Schema {
    tree: Value,
    leaves: Vec<String>,
    sections: Vec<String>,
}

impl Schema {
    /// The keys of [`Config`].
    pub fn new() -> Self {
        Self::of(serde_json::to_value(Config::default()).unwrap_or_default())
    }

    fn of(tree: Value) -> Self {
        let mut schema = Self { tree: Value::Null, leaves: Vec::new(), sections: Vec::new() };
        schema.walk("", &tree);
        schema.tree = tree;
        schema
    }

    fn walk(&mut self, prefix: &str, value: &Value) {
        let Value::Object(map) = value else { return };
        for (key, child) in map {
            let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            if is_section(child) {
                self.sections.push(name.clone());
                self.walk(&name, child);
            } else {
                self.leaves.push(name);
            }
        }
    }

    /// The defaults as a tree of values.
    pub fn defaults(&self) -> &Value {
        &self.tree
    }

    /// What stands at `path`; a path that goes on inside a leaf's mapping or list is a leaf.
    pub fn kind(&self, path: &[String]) -> Option<Kind> {
        let mut node = &self.tree;
        for (i, name) in path.iter().enumerate() {
            match node {
                Value::Object(map) if map.is_empty() && i > 0 => return Some(Kind::Leaf),
                Value::Array(_) => return name.parse::<usize>().is_ok().then_some(Kind::Leaf),
                Value::Object(map) => node = map.get(name)?,
                _ => return None,
            }
        }
        Some(if is_section(node) { Kind::Section } else { Kind::Leaf })
    }

    /// The key that `name` stands for: a full name, another program's name for it, or an ending that only one key has.
    pub fn resolve(&self, name: &str) -> Result<Found, NameFault> {
        let path = split(name);
        if self.kind(&path).is_some() {
            return Ok(Found { path, alias: false });
        }
        if let Some(native) = alias::native(name) {
            return Ok(Found { path: split(native), alias: true });
        }
        let candidates = self.ending_with(name);
        match candidates.as_slice() {
            [one] => return Ok(Found { path: split(one), alias: false }),
            [] => {}
            _ => return Err(NameFault::Ambiguous { candidates: candidates.into_iter().cloned().collect() }),
        }
        // A bare name that goes on inside its value, as in `chat_template_kwargs.enable_thinking`.
        for (cut, _) in name.rmatch_indices('.') {
            if let [one] = self.ending_with(&name[..cut]).as_slice() {
                let path = split(&format!("{one}{}", &name[cut..]));
                if self.kind(&path).is_some() {
                    return Ok(Found { path, alias: false });
                }
            }
        }
        Err(NameFault::Unknown { advice: self.advice(name) })
    }

    fn ending_with(&self, name: &str) -> Vec<&String> {
        let ending = format!(".{name}");
        self.leaves.iter().filter(|leaf| leaf.ends_with(&ending)).collect()
    }

    fn advice(&self, name: &str) -> String {
        if let Some(hint) = alias::hint(name) {
            return format!(": {hint}");
        }
        self.nearest(name).map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
    }

    /// The key whose name is nearest to `name`, if any is near: a third of its letters may differ.
    fn nearest(&self, name: &str) -> Option<&str> {
        let last = |full: &str| full.rsplit('.').next().unwrap_or(full).to_owned();
        let score = |full: &str| {
            let whole = strsim::damerau_levenshtein(name, full);
            let ending = strsim::damerau_levenshtein(&last(name), &last(full));
            // A leaf in the wrong section is nearer than another leaf in the right one.
            if name.contains('.') { whole.min(ending * 2 + usize::from(whole > 0)) } else { whole.min(ending) }
        };
        let names = self.sections.iter().chain(&self.leaves);
        let (distance, near) = names.map(|full| (score(full), full)).min()?;
        (distance <= (last(name).chars().count() / 3).max(2)).then_some(near)
    }
}

fn split(dotted: &str) -> Vec<String> {
    dotted.split('.').map(str::to_owned).collect()
}

fn is_section(value: &Value) -> bool {
    value.as_object().is_some_and(|map| !map.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(name: &str) -> Result<String, NameFault> {
        Schema::new().resolve(name).map(|found| found.path.join("."))
    }

    fn advice(name: &str) -> String {
        match resolve(name) {
            Err(NameFault::Unknown { advice }) => advice,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn names_are_found_whole_bare_and_inside_free_values() {
        for (written, full) in [
            ("rollout.num_generations", "rollout.num_generations"),
            ("num_generations", "rollout.num_generations"),
            ("arithmetic.digits", "data.arithmetic.digits"),
            ("digits", "data.arithmetic.digits"),
            ("rollout", "rollout"),
            ("rollout.chat_template_kwargs.enable_thinking", "rollout.chat_template_kwargs.enable_thinking"),
            ("reward.0.weight", "reward.0.weight"),
            ("run_name", "run.name"),
            ("actor_rollout_ref.rollout.n", "rollout.num_generations"),
        ] {
            assert_eq!(resolve(written), Ok(full.to_owned()), "{written}");
        }
    }

    #[test]
    fn a_name_that_is_no_key_gets_the_nearest_one() {
        for (written, near) in [
            ("num_generation", "rollout.num_generations"),
            ("rollout.num_generatoins", "rollout.num_generations"),
            ("rolout", "rollout"),
            ("rolout.temperature", "rollout.temperature"),
            ("rollout.lora_r", "lora.lora_r"),
            ("optim.temperature", "rollout.temperature"),
        ] {
            assert_eq!(advice(written), format!("; did you mean `{near}`?"), "{written}");
        }
        assert_eq!(advice("quantum_flux_capacitor"), "");
        assert!(advice("use_vllm").starts_with(": "));
    }

    #[test]
    fn a_bare_name_of_several_keys_is_ambiguous() {
        let schema = Schema::of(serde_json::json!({"a": {"size": 1, "b": {"size": 2}}, "c": {"size": 3, "free": {}}}));
        let ambiguous = |candidates: &[&str]| {
            Err(NameFault::Ambiguous { candidates: candidates.iter().map(|name| (*name).to_owned()).collect() })
        };
        assert_eq!(schema.resolve("size"), ambiguous(&["a.size", "a.b.size", "c.size"]));
        assert_eq!(schema.resolve("b.size").unwrap().path, ["a", "b", "size"]);
        assert_eq!(schema.resolve("free.any.thing").unwrap().path, ["c", "free", "any", "thing"]);
        assert!(schema.resolve("size.any").is_err());
    }

    #[test]
    fn an_alias_never_hides_a_key_and_always_leads_to_one() {
        let schema = Schema::new();
        for (name, native) in alias::ALIASES {
            assert_eq!(schema.kind(&split(native)), Some(Kind::Leaf), "{name} leads to {native}");
            assert_eq!(schema.kind(&split(name)), None, "{name} is a key itself");
            assert!(schema.ending_with(name).is_empty(), "{name} is the bare name of a key");
        }
    }
}
