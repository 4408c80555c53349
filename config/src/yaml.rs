//! Reads YAML and JSON into plain values, with the bounds that a file from outside needs, and finds the place of a key again.
//!
//! The parser reports the place of an error and of nothing else. So a place is asked for by reading the text once more
//! and failing on purpose when the key is reached: slow, exact, and only ever done for an error message.

use std::cell::Cell;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Most values that one file may expand to: anchors that repeat each other grow beyond any size of the file.
pub(crate) const MAX_VALUES: usize = 50_000;

/// Where and why a text is not readable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line and column, from 1.
    pub at: Option<(usize, usize)>,
    /// What is wrong.
    pub reason: String,
}

/// Reads one document. Keys are texts, no key occurs twice, numbers are finite; an empty text is null.
///
/// # Errors
/// If it is no such document, or holds too much.
pub fn parse(text: &str) -> Result<Value, Fault> {
    read(text, None).map_err(|error| {
        let at = error.location().map(|l| (l.line(), l.column()));
        let mut reason = error.to_string();
        // The parser appends the place, which the caller writes in front.
        if let Some(cut) = reason.rfind(" at line ") {
            reason.truncate(cut);
        }
        Fault { at, reason }
    })
}

/// Reads JSON, under the same rules.
///
/// # Errors
/// As [`parse`]; an empty text is no JSON.
pub fn parse_json(text: &str) -> Result<Value, Fault> {
    let fault = |error: serde_json::Error| {
        let mut reason = error.to_string();
        if let Some(cut) = reason.rfind(" at line ") {
            reason.truncate(cut);
        }
        Fault { at: (error.line() > 0).then_some((error.line(), error.column())), reason }
    };
    let budget = Cell::new(MAX_VALUES);
    let mut source = serde_json::Deserializer::from_str(text.trim_start_matches('\u{feff}'));
    let value = Node { budget: &budget, wanted: None, depth: 0 }.deserialize(&mut source).map_err(fault)?;
    source.end().map_err(fault)?;
    Ok(value)
}

/// Line and column of the key at `path`; none if the text has no such key.
pub(crate) fn position(text: &str, path: &[String]) -> Option<(usize, usize)> {
    let wanted = Wanted { path, found: Cell::new(false) };
    let error = read(text, Some(&wanted)).err()?;
    let place = error.location()?;
    wanted.found.get().then_some((place.line(), place.column()))
}

fn read(text: &str, wanted: Option<&Wanted<'_>>) -> Result<Value, serde_norway::Error> {
    let budget = Cell::new(MAX_VALUES);
    let node = Node { budget: &budget, wanted, depth: 0 };
    node.deserialize(serde_norway::Deserializer::from_str(text.trim_start_matches('\u{feff}')))
}

struct Wanted<'a> {
    path: &'a [String],
    found: Cell<bool>,
}

/// Reads a value. `wanted` is set while the keys read so far are the first `depth` of the wanted path.
#[derive(Clone, Copy)]
struct Node<'a> {
    budget: &'a Cell<usize>,
    wanted: Option<&'a Wanted<'a>>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Some(left) = self.budget.get().checked_sub(1) else {
            return Err(D::Error::custom(format!("more than {MAX_VALUES} values, with anchors written out")));
        };
        self.budget.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a plain value without a tag")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let finite = Number::from_f64(value);
        finite.map(Value::Number).ok_or_else(|| E::custom(format!("expected a finite number, got {value}")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let next = self.wanted.filter(|w| w.path.get(self.depth).is_some_and(|p| *p == list.len().to_string()));
            let inside = next.is_some_and(|w| w.path.len() > self.depth + 1);
            let item = Node { wanted: next.filter(|_| inside), depth: self.depth + 1, ..self };
            match items.next_element_seed(item)? {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(Key { seen: &map, node: self })? {
            let wanted = self.wanted.filter(|w| w.path.get(self.depth) == Some(&key));
            let value = entries.next_value_seed(Node { wanted, depth: self.depth + 1, ..self })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Reads a key, and fails where it stands: the error then has the place of the key.
struct Key<'a, 'b> {
    seen: &'a Map<String, Value>,
    node: Node<'b>,
}

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key<'_, '_> {
    type Value = String;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key (a text)")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<String, E> {
        if self.seen.contains_key(key) {
            return Err(E::custom(format!("the key `{key}` occurs twice")));
        }
        if let Some(wanted) = self.node.wanted
            && wanted.path.len() == self.node.depth + 1
            && wanted.path[self.node.depth] == key
        {
            wanted.found.set(true);
            return Err(E::custom("found"));
        }
        Ok(key.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(dotted: &str) -> Vec<String> {
        dotted.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn plain_documents_read_as_values() {
        let text = "\u{feff}a: 1\nb:\n  - 2.5\n  - x\n  - 1e-6\nc: null\nd: {e: true}\n";
        assert_eq!(parse(text).unwrap(), json!({"a": 1, "b": [2.5, "x", 1e-6], "c": null, "d": {"e": true}}));
        assert_eq!(parse("").unwrap(), Value::Null);
        assert_eq!(parse("x: &one [1]\ny: *one").unwrap(), json!({"x": [1], "y": [1]}));
    }

    #[test]
    fn a_fault_has_its_line_and_column() {
        for (text, at, reason) in [
            ("a: 1\nb: 2\na: 3\n", (3, 1), "the key `a` occurs twice"),
            ("a:\n  b: 1\n  b: 2\n", (3, 3), "a: the key `b` occurs twice"),
            ("a: .nan\n", (1, 4), "a: expected a finite number, got NaN"),
            ("a: 1\n5: 2\n", (2, 1), "invalid type: integer `5`, expected a key (a text)"),
            ("a: !env HOME\n", (1, 4), "a: invalid type: enum, expected a plain value without a tag"),
        ] {
            let fault = parse(text).unwrap_err();
            assert_eq!((fault.at, fault.reason.as_str()), (Some(at), reason), "{text:?}");
        }
        let tab = parse("a:\n\tb: 1\n").unwrap_err();
        assert_eq!(tab.at.map(|(line, _)| line), Some(2), "{tab:?}");
    }

    #[test]
    fn json_is_read_under_the_same_rules() {
        assert_eq!(parse_json("\u{feff}{\"a\": [1, \"\\ud83d\\ude00\"]}\n").unwrap(), json!({"a": [1, "\u{1f600}"]}));
        for (text, at, reason) in [
            ("{\"a\": 1,\n\"a\": 2}", (2, 3), "the key `a` occurs twice"),
            ("{\"a\": tru}", (1, 10), "expected ident"),
            ("[1] [2]", (1, 5), "trailing characters"),
            ("", (1, 0), "EOF while parsing a value"),
        ] {
            let fault = parse_json(text).unwrap_err();
            assert_eq!((fault.at, fault.reason.as_str()), (Some(at), reason), "{text:?}");
        }
        assert!(parse_json(&format!("[{}1]", "1,".repeat(MAX_VALUES))).unwrap_err().reason.contains("more than 50000"));
        assert!(parse_json(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn anchors_cannot_grow_without_bound() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..10 {
            let prior = format!("*a{}, ", i - 1).repeat(10);
            text.push_str(&format!("a{i}: &a{i} [{prior}]\n"));
        }
        let reason = parse(&text).unwrap_err().reason;
        assert!(reason.contains("50000 values") || reason.contains("repetition limit"), "{reason}");
        let flat = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(2000), "*a,".repeat(2000));
        assert!(parse(&flat).unwrap_err().reason.contains("more than 50000 values"));
        let deep = "[".repeat(100_000);
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn the_place_of_a_key_is_found_again() {
        let text = "run:\n  seed: 1\nrollout:\n  stop: [a]\n  temperature: hot\nreward:\n  - name: x\n    weight: 2\n";
        assert_eq!(position(text, &path("rollout.temperature")), Some((5, 3)));
        assert_eq!(position(text, &path("run")), Some((1, 1)));
        assert_eq!(position(text, &path("reward.0.weight")), Some((8, 5)));
        assert_eq!(position(text, &path("rollout.seed")), None);
        assert_eq!(position(text, &path("reward.1.weight")), None);
    }
}
