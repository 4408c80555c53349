//! What a service shows of itself: one small JSON value that anyone in the process can read or follow.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::watch;

/// The current value. Clones are the same value; `null` until first set.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<watch::Sender<Value>>);

impl Status {
    /// A status that is `null`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the whole value. What cannot be written as JSON shows as its error.
    pub fn set(&self, value: impl Serialize) {
        self.0.send_replace(to_value(value));
    }

    /// Sets one field, and makes the value an object if it was none.
    pub fn set_field(&self, key: &str, value: impl Serialize) {
        let value = to_value(value);
        self.0.send_modify(|current| match current {
            Value::Object(fields) => {
                fields.insert(key.to_owned(), value);
            }
            other => *other = Value::Object(Map::from_iter([(key.to_owned(), value)])),
        });
    }

    /// The current value.
    pub fn get(&self) -> Value {
        self.0.borrow().clone()
    }

    /// Follows the value from now on.
    pub fn watch(&self) -> StatusWatch {
        StatusWatch(self.0.subscribe())
    }
}

fn to_value(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_else(|e| Value::String(format!("status cannot be written as JSON: {e}")))
}

/// Follows a [`Status`].
#[derive(Debug)]
pub struct StatusWatch(watch::Receiver<Value>);

impl StatusWatch {
    /// The next value; what was overwritten meanwhile is skipped. None when the status is gone.
    pub async fn next(&mut self) -> Option<Value> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn a_watcher_sees_the_latest_value_and_then_the_end() {
        let status = Status::new();
        let mut watch = status.watch();
        status.set(json!({"step": 1}));
        status.set_field("loss", 0.5);
        assert_eq!(watch.next().await, Some(json!({"step": 1, "loss": 0.5})));
        status.set("idle");
        status.set_field("step", 2);
        assert_eq!(status.get(), json!({"step": 2}));
        drop(status);
        assert_eq!(watch.next().await, Some(json!({"step": 2})));
        assert_eq!(watch.next().await, None);
    }
}
