//! Typed latest values.

use std::marker::PhantomData;

use folgore_protocol::{Format, decode};
use serde::{Serialize, de::DeserializeOwned};

use super::{CallError, encode_as};
use crate::{LinkError, Links, Versioned, Watch};

/// A value with the revision of its write.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<T> {
    /// From 1; 0 stands for "absent" in [`Links::put_state_if`].
    pub revision: u64,
    /// The value.
    pub value: T,
}

/// Follows one key.
pub struct TypedWatch<T> {
    key: String,
    watch: Box<dyn Watch>,
    types: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> TypedWatch<T> {
    /// The next value; the first call gives the current one, if any. Skips what was overwritten meanwhile. None when the
    /// link is closed.
    pub async fn next(&mut self) -> Option<Result<Stored<T>, CallError>> {
        let versioned = self.watch.next().await?;
        Some(read(&self.key, versioned))
    }
}

impl Links {
    /// The current value of `key`.
    pub async fn get_state<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Stored<T>>, CallError> {
        let current = self.state.get(key).await?;
        current.map(|versioned| read(key, versioned)).transpose()
    }

    /// Writes `value` if `key` is at revision `expected` (0: absent); gives the new revision, or [`LinkError::Conflict`].
    pub async fn put_state_if<T: Serialize>(&self, key: &str, expected: u64, value: &T) -> Result<u64, CallError> {
        let body = encode_as(value, Format::MessagePack)
            .map_err(|source| CallError::Body { subject: key.to_owned(), source })?;
        Ok(self.state.put_if(key, expected, body.into()).await?)
    }

    /// Follows `key`.
    pub async fn watch_state<T: DeserializeOwned>(&self, key: &str) -> Result<TypedWatch<T>, LinkError> {
        Ok(TypedWatch { key: key.to_owned(), watch: self.state.watch(key).await?, types: PhantomData })
    }
}

fn read<T: DeserializeOwned>(key: &str, versioned: Versioned) -> Result<Stored<T>, CallError> {
    let value = decode(&versioned.value).map_err(|source| CallError::Body { subject: key.to_owned(), source })?;
    Ok(Stored { revision: versioned.revision, value })
}
