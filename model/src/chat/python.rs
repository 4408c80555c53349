//! Values as Python prints them: templates were written for Jinja2, where `{{ true }}` is `True` and floats keep their point.

use std::fmt::Write;

use minijinja::{
    Error, ErrorKind, Output, State, Value,
    value::{Kwargs, ValueKind},
};

/// Deepest value that is printed.
const DEPTH: usize = 64;

/// A JSON value for a template; the order of keys is kept.
pub(super) fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(n), _) => Value::from(n),
            (_, Some(n)) => Value::from(n),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(list) => list.iter().map(value).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.clone(), value(v)))),
    }
}

/// Prints what `{{ value }}` prints in Python.
pub(super) fn format(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Undefined => return Ok(()),
        ValueKind::String => return out.write_str(value.as_str().unwrap_or_default()).map_err(broken),
        ValueKind::Bool | ValueKind::None | ValueKind::Number | ValueKind::Seq | ValueKind::Map => repr(value, 0)?,
        _ => value.to_string(),
    };
    out.write_str(&text).map_err(broken)
}

fn broken(_: std::fmt::Error) -> Error {
    Error::from(ErrorKind::WriteFailure)
}

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, "value nested too deep")
}

/// Python's `repr`.
fn repr(value: &Value, depth: usize) -> Result<String, Error> {
    if depth > DEPTH {
        return Err(too_deep());
    }
    Ok(match value.kind() {
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::None => "None".into(),
        ValueKind::Number => number(value),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            let items: Result<Vec<String>, Error> = value.try_iter()?.map(|item| repr(&item, depth + 1)).collect();
            format!("[{}]", items?.join(", "))
        }
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                items.push(format!("{}: {}", repr(&key, depth + 1)?, repr(&value.get_item(&key)?, depth + 1)?));
            }
            format!("{{{}}}", items.join(", "))
        }
        _ => value.to_string(),
    })
}

/// A text in Python's quotes: single ones, unless it holds only single ones itself.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => python_float(float),
        _ => value.to_string(),
    }
}

/// The shortest digits that give the number back, in Python's layout: positional from 1e-4 to below 1e16.
fn python_float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "nan"
        } else if x > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) || x == 0.0 {
        let text = format!("{x}");
        return if text.contains('.') { text } else { text + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// `tojson` as transformers gives it: `json.dumps(value, ensure_ascii=False, indent=...)`.
pub(super) fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = indent.or(options.get::<Option<usize>>("indent")?);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    // only what transformers sets by default may be asked for again
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    if ascii || options.has("separators") {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: ensure_ascii and separators are not supported"));
    }
    options.assert_all_used()?;
    let mut dump = Dump { out: String::new(), indent: indent.filter(|width| *width <= 16), sort_keys };
    dump.value(value, 0)?;
    Ok(Value::from(dump.out))
}

struct Dump {
    out: String,
    indent: Option<usize>,
    sort_keys: bool,
}

impl Dump {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(too_deep());
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list('{', '}', keys, depth, |dump, key| {
                    dump.text(key.as_str().map_or_else(|| key.to_string(), str::to_owned).as_str());
                    dump.out.push_str(": ");
                    dump.value(&value.get_item(&key)?, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.collect();
                self.list('[', ']', items, depth, |dump, item| dump.value(&item, depth + 1))?;
            }
            kind => return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {kind} is not JSON"))),
        }
        Ok(())
    }

    fn list(
        &mut self,
        open: char,
        close: char,
        items: Vec<Value>,
        depth: usize,
        mut each: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let empty = items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.out.push_str(if self.indent.is_some() { "," } else { ", " });
            }
            self.line(depth + 1);
            each(self, item)?;
        }
        if !empty {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(width) = self.indent {
            let _ = write!(self.out, "\n{:w$}", "", w = width * depth); // writing to a String cannot fail
        }
    }

    fn text(&mut self, text: &str) {
        // both escape quotes, backslashes and control characters alike, and leave the rest
        self.out.push_str(&serde_json::Value::from(text).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_prints_them() {
        for (x, text) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (1.5e300, "1.5e+300"),
            (123456789.125, "123456789.125"),
        ] {
            assert_eq!(python_float(x), text);
        }
    }

    #[test]
    fn values_as_python_prints_them() {
        let json = serde_json::json!({"b": [1, 2.5, null, true], "a": "it's \"x\"\n", "c": "it's"});
        let text = r#"{'b': [1, 2.5, None, True], 'a': 'it\'s "x"\n', 'c': "it's"}"#;
        assert_eq!(repr(&value(&json), 0).unwrap(), text);
    }
}
