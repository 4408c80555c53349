//! `sop`: standard operating procedures, of which those that fit a question stand in its prompt.

use serde::{Deserialize, Serialize};

use crate::Problems;

/// The name in [`SopSection::path`] of the procedures that come with the executable.
pub const BUILTIN: &str = "builtin";

/// The section `sop`. It is off unless `path` names something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SopSection {
    /// Files of procedures (YAML, JSON) and folders of such files; `builtin` names those that come with the executable.
    pub path: Vec<String>,
    /// Only procedures of these categories are found; none: of all.
    pub categories: Vec<String>,
    /// Most procedures in a prompt.
    pub max_procedures: u32,
    /// Most tokens that the procedures of a prompt take. What is too long is shortened by whole steps.
    pub max_procedure_tokens: u32,
    /// How well a procedure must fit to be found: 0 anything, 1 only where a trigger stands in the question.
    pub min_score: f64,
}

impl Default for SopSection {
    fn default() -> Self {
        Self { path: Vec::new(), categories: Vec::new(), max_procedures: 1, max_procedure_tokens: 512, min_score: 0.5 }
    }
}

impl SopSection {
    /// True if prompts get procedures.
    pub fn is_on(&self) -> bool {
        !self.path.is_empty()
    }

    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        for (key, list, what) in [
            ("path", &self.path, "files, folders or `builtin`"),
            ("categories", &self.categories, "names of categories"),
        ] {
            p.expect(list.iter().all(|item| !item.trim().is_empty()), key, what, "an empty text");
            let twice = (1..list.len()).find(|i| list[..*i].contains(&list[*i]));
            if let Some(i) = twice {
                p.expect(false, key, "each once", format_args!("{:?} twice", list[i]));
            }
        }
        p.range("max_procedures", 1.0, 16.0, self.max_procedures.into());
        p.range("max_procedure_tokens", 32.0, 65_536.0, self.max_procedure_tokens.into());
        p.range("min_score", 0.0, 1.0, self.min_score);
        let alone = self.is_on() || *self == Self::default();
        p.warn(!alone, "path", "is empty, so that no procedures are used and the other settings of sop do nothing");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(change: fn(&mut SopSection)) -> (String, Vec<String>) {
        let mut section = SopSection::default();
        change(&mut section);
        let mut p = Problems::default();
        section.check(p.section("sop"));
        (p.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "), p.warnings)
    }

    #[test]
    fn it_is_off_by_default_and_says_what_is_wrong() {
        assert_eq!(told(|_| ()), (String::new(), Vec::new()));
        assert!(!SopSection::default().is_on());
        assert_eq!(told(|s| s.path = vec![BUILTIN.into(), "sops".into()]).0, "");
        assert!(told(|s| s.path = vec![" ".into()]).0.contains("sop.path: expected files, folders or `builtin`"));
        assert!(
            told(|s| s.path = vec!["a".into(), "a".into()]).0.contains("sop.path: expected each once, got \"a\" twice")
        );
        assert!(told(|s| s.max_procedures = 0).0.contains("sop.max_procedures: expected 1 to 16, got 0"));
        assert!(told(|s| s.max_procedure_tokens = 8).0.contains("sop.max_procedure_tokens: expected 32 to 65536"));
        assert!(told(|s| s.min_score = f64::NAN).0.contains("sop.min_score: expected 0 to 1"));
        assert!(told(|s| s.max_procedures = 2).1[0].starts_with("sop.path: is empty"));
    }
}
