//! Which modules differ from the rest of an adapter, in PEFT's terms: names and regular expressions over module paths.

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

/// Bytes that one compiled expression may take: they come from files of others.
const COMPILED_MAX: usize = 1 << 20;

/// What an adapter does not do alike everywhere. The default is an adapter that does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// The only modules that carry an adapter. None: all of the targets.
    pub only: Option<Modules>,
    /// Modules that carry none.
    pub never: Option<Modules>,
    /// The only layers that carry one. None: all.
    pub layers: Option<Vec<usize>>,
    /// Ranks; the first pattern that matches counts.
    pub ranks: Vec<(Pattern, usize)>,
    /// Alphas; the first pattern that matches counts.
    pub alphas: Vec<(Pattern, f32)>,
}

impl Rules {
    /// True if `module`, which lies in `layer` and is of a target, carries an adapter.
    pub fn carries(&self, layer: usize, module: &str) -> bool {
        let listed = self.layers.as_ref().is_none_or(|layers| layers.contains(&layer));
        let chosen = self.only.as_ref().is_none_or(|only| only.hold(module));
        listed && chosen && !self.never.as_ref().is_some_and(|never| never.hold(module))
    }

    /// The rank of `module`, if it has one of its own.
    pub fn r(&self, module: &str) -> Option<usize> {
        self.ranks.iter().find(|(pattern, _)| pattern.ends(module)).map(|(_, r)| *r)
    }

    /// The alpha of `module`, if it has one of its own.
    pub fn alpha(&self, module: &str) -> Option<f32> {
        self.alphas.iter().find(|(pattern, _)| pattern.ends(module)).map(|(_, alpha)| *alpha)
    }
}

/// Modules, as `target_modules` and `exclude_modules` name them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Modules {
    /// Each by its path, or by whole parts at the end of it.
    Names(Vec<String>),
    /// Those whose whole path the expression matches.
    Matching(Pattern),
}

impl Modules {
    /// True if `module` is one of them.
    pub fn hold(&self, module: &str) -> bool {
        let ends = |name: &String| module.strip_suffix(name.as_str()).is_some_and(|r| r.is_empty() || r.ends_with('.'));
        match self {
            Self::Names(names) => names.iter().any(ends),
            Self::Matching(pattern) => pattern.is_all_of(module),
        }
    }
}

/// A regular expression, compared by its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: String,
    whole: Regex,
    end: Regex,
}

impl Pattern {
    /// True if the expression matches all of `module`.
    pub fn is_all_of(&self, module: &str) -> bool {
        self.whole.is_match(module)
    }

    /// True if the expression matches `module`, or whole parts at its end.
    pub fn ends(&self, module: &str) -> bool {
        self.end.is_match(module)
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let build = |expression: String| {
            let built = RegexBuilder::new(&expression).size_limit(COMPILED_MAX).build();
            built.map_err(|e| format!("regular expression {text:?}: {e}"))
        };
        let (whole, end) = (build(format!("^(?:{text})$"))?, build(format!(r"^(?:.*\.)?(?:{text})$"))?);
        Ok(Self { text, whole, end })
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn names_and_patterns_match_as_in_peft() {
        let module = "model.layers.1.self_attn.q_proj";
        for (names, held) in
            [("q_proj", true), ("self_attn.q_proj", true), (module, true), ("proj", false), ("q_pro", false)]
        {
            assert_eq!(Modules::Names(vec![names.into()]).hold(module), held, "{names}");
        }
        for (text, all, end) in [
            (r".*\.q_proj", true, true),
            ("q_proj", false, true),
            (r"layers\.1\..*", false, true),
            (r"model\.layers\.[0-1]\..*_proj", true, true),
            ("k_proj|q_proj", false, true),
            ("^q_proj", false, false),
            ("^model.layers.1.self_attn.q_proj", true, true),
            ("_proj", false, false),
        ] {
            assert_eq!((pattern(text).is_all_of(module), pattern(text).ends(module)), (all, end), "{text}");
        }
        assert!(Pattern::try_from("(q".to_owned()).unwrap_err().contains("\"(q\""));
        assert!(Pattern::try_from("(((a{1000}){1000}){1000})".to_owned()).is_err());
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rules = Rules {
            never: Some(Modules::Names(vec!["v_proj".into()])),
            layers: Some(vec![1]),
            ranks: vec![(pattern(r"layers\.1\..*"), 2), (pattern("q_proj"), 3)],
            ..Rules::default()
        };
        assert!(rules.carries(1, "model.layers.1.self_attn.q_proj"));
        assert!(!rules.carries(0, "model.layers.0.self_attn.q_proj"));
        assert!(!rules.carries(1, "model.layers.1.self_attn.v_proj"));
        assert_eq!(
            (rules.r("model.layers.1.self_attn.q_proj"), rules.r("model.layers.0.self_attn.q_proj")),
            (Some(2), Some(3))
        );
        assert_eq!(rules.alpha("model.layers.1.self_attn.q_proj"), None);
    }
}
