//! A JSON object read key by key, with errors that name its place and the key.

use serde_json::{Map, Value};

use crate::{ModelError, files::fault};

/// A JSON object with its place.
#[derive(Clone, Copy)]
pub(crate) struct Object<'a> {
    pub(crate) place: &'a str,
    pub(crate) map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn wrong(&self, key: &str, expected: &str) -> ModelError {
        fault::invalid(self.place, key, expected, self.map.get(key).unwrap_or(&Value::Null))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.wrong(key, "a text"))).transpose()
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| self.wrong(key, "true or false"))).transpose()
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.get(key).map(|v| v.as_f64().ok_or_else(|| self.wrong(key, "a number"))).transpose()
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize, ModelError> {
        let value = self.get(key).ok_or_else(|| fault::missing(self.place, key))?;
        let size = value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| *v > 0);
        size.ok_or_else(|| self.wrong(key, "a whole number of at least 1"))
    }

    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        if self.get(key).is_some() { self.size(key) } else { Ok(default) }
    }

    pub(crate) fn count(&self, key: &str) -> Result<usize, ModelError> {
        let value = self.get(key).ok_or_else(|| fault::missing(self.place, key))?;
        let count = value.as_u64().and_then(|v| usize::try_from(v).ok());
        count.ok_or_else(|| self.wrong(key, "a whole number"))
    }

    /// An id, a list of ids or nothing.
    pub(crate) fn ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let id = |v: &Value| {
            let id = v.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.wrong(key, "a token id or a list of them"))
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }

    pub(crate) fn end_ids(&self, into: &mut Vec<u32>) -> Result<(), ModelError> {
        for id in self.ids("eos_token_id")? {
            if !into.contains(&id) {
                into.push(id);
            }
        }
        Ok(())
    }

    /// The object under `key`.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Object<'_>>, ModelError> {
        let value = self.get(key).map(|v| v.as_object().ok_or_else(|| self.wrong(key, "an object"))).transpose()?;
        Ok(value.map(|map| Object { place: self.place, map }))
    }

    /// A number above 0.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let number = self.number(key)?;
        match number.filter(|n| !(n.is_finite() && *n > 0.0)) {
            None => Ok(number),
            Some(_) => Err(self.wrong(key, "a number above 0")),
        }
    }

    /// Refuses `key` where it is there and says something that is not as `plain`.
    pub(crate) fn refuse_unless(
        &self,
        key: &str,
        plain: impl Fn(&Value) -> bool,
        hint: &str,
    ) -> Result<(), ModelError> {
        match self.get(key).filter(|value| !plain(value)) {
            None => Ok(()),
            Some(value) => Err(fault::unsupported(self.place, format!("{key}: {value}"), hint)),
        }
    }
}
