//! Short forms of the errors that readers of files raise.

use std::{fmt::Display, io, path::Path};

use crate::ModelError;

pub(crate) fn io(path: impl AsRef<Path>, source: io::Error) -> ModelError {
    ModelError::Io { path: path.as_ref().display().to_string(), source }
}

pub(crate) fn missing(place: impl Display, what: impl Display) -> ModelError {
    ModelError::Missing { what: what.to_string(), place: place.to_string() }
}

pub(crate) fn invalid(
    place: impl Display,
    what: impl Display,
    expected: impl Display,
    got: impl Display,
) -> ModelError {
    ModelError::Invalid {
        place: place.to_string(),
        what: what.to_string(),
        expected: expected.to_string(),
        got: got.to_string(),
    }
}

/// `hint` says what to do instead; it may be empty.
pub(crate) fn unsupported(place: impl Display, what: impl Display, hint: &str) -> ModelError {
    let hint = if hint.is_empty() { String::new() } else { format!(": {hint}") };
    ModelError::Unsupported { place: place.to_string(), what: what.to_string(), hint }
}
