//! An envelope as the headers of a NATS message.

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use folgore_protocol::{Digest, Envelope, PolicyId};

const SCHEMA: &str = "Rl-Schema";
const RUN: &str = "Rl-Run";
const ID: &str = "Rl-Id";
const POLICY: &str = "Rl-Policy";
const BUDGET: &str = "Rl-Budget-Ms";
const SHA256: &str = "Rl-Sha256";
const LEN: &str = "Rl-Len";
const TRACEPARENT: &str = "traceparent";
/// The name of a body that travels in an object bucket.
pub(super) const BLOB: &str = "Rl-Blob";
/// Why a request was refused; its reply has no body.
pub(super) const ERROR: &str = "Rl-Error";
/// What the server knows a publish by.
pub(super) const MESSAGE_ID: &str = "Nats-Msg-Id";

const MOST_HEADERS: usize = 16;
/// Most bytes of all names and values together; room for them is left in every message.
pub(super) const MOST_BYTES: usize = 4096;
/// Most bytes of a refusal.
const MOST_REASON: usize = 2048;

/// The headers for `envelope` beside a body of `len` bytes.
///
/// # Errors
/// If a value cannot be a header, or there is too much of them.
pub(super) fn write(envelope: &Envelope, len: usize) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    insert(&mut headers, SCHEMA, &format!("{}.0", envelope.version))?;
    insert(&mut headers, RUN, &envelope.run)?;
    insert(&mut headers, ID, &envelope.key)?;
    insert(&mut headers, LEN, &len.to_string())?;
    if let Some(PolicyId { epoch, step, digest }) = envelope.policy {
        insert(&mut headers, POLICY, &format!("{epoch}/{step}/{digest}"))?;
    }
    if let Some(budget) = envelope.budget_ms {
        insert(&mut headers, BUDGET, &budget.to_string())?;
    }
    if let Some(digest) = envelope.digest {
        insert(&mut headers, SHA256, &digest.hex())?;
    }
    if let Some(traceparent) = &envelope.traceparent {
        insert(&mut headers, TRACEPARENT, traceparent)?;
    }
    check_size(&headers)?;
    Ok(headers)
}

/// Sets `name` to `value`, which must arrive as it was sent: a receiver cuts blanks off its ends.
pub(super) fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), String> {
    if value.trim() != value || value.chars().any(char::is_control) {
        return Err(format!("header {name}: {value:?} has control characters, or blanks at its ends"));
    }
    let value: HeaderValue = value.parse().map_err(|e| format!("header {name}: {e}"))?;
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}

/// The headers of a reply that says why there is no answer.
pub(super) fn refusal(reason: &str) -> HeaderMap {
    let mut line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(MOST_REASON));
    let mut headers = HeaderMap::new();
    // A line without control characters and blanks at its ends is a header.
    if insert(&mut headers, ERROR, line.trim()).is_err() {
        headers.insert(ERROR, "refused");
    }
    headers
}

/// The envelope in `headers`, beside a body of `len` bytes.
///
/// # Errors
/// If a header is missing or not of its form, there is too much of them, or the body is not as long as they say.
pub(super) fn read(headers: Option<&HeaderMap>, len: usize) -> Result<Envelope, String> {
    let headers = headers.ok_or_else(|| format!("no headers, expected {SCHEMA}, {RUN} and {ID}"))?;
    check_size(headers)?;
    let required = |name| text(headers, name).ok_or_else(|| format!("header {name} is missing"));
    let schema = required(SCHEMA)?;
    let version = schema.split('.').next().and_then(|major| major.parse().ok());
    let envelope = Envelope {
        version: version.ok_or_else(|| odd(SCHEMA, "major.minor", schema))?,
        run: required(RUN)?.to_owned(),
        key: required(ID)?.to_owned(),
        policy: parsed(headers, POLICY, "epoch/step/digest", policy)?,
        budget_ms: parsed(headers, BUDGET, "a number", |text| text.parse().ok())?,
        digest: parsed(headers, SHA256, "64 hexadecimal digits", |text| Digest::try_from(text.to_owned()).ok())?,
        traceparent: text(headers, TRACEPARENT).map(str::to_owned),
    };
    match parsed(headers, LEN, "a number", |text| text.parse::<usize>().ok())? {
        Some(said) if said != len => Err(format!("header {LEN}: expected a body of {said} bytes, got {len}")),
        _ => Ok(envelope),
    }
}

/// The budget in `headers`, if it is one.
pub(super) fn budget(headers: Option<&HeaderMap>) -> Option<std::time::Duration> {
    text(headers?, BUDGET)?.parse().ok().map(std::time::Duration::from_millis)
}

/// What stands in for an envelope that could not be read: no version is its, so that everybody refuses it.
pub(super) fn unreadable(headers: Option<&HeaderMap>) -> Envelope {
    let key = headers.and_then(|headers| text(headers, ID)).unwrap_or("unknown");
    Envelope { version: 0, ..Envelope::new("", key) }
}

/// The value of `name`, if it is there.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    headers.get(HeaderName::from_static(name)).map(HeaderValue::as_str)
}

fn parsed<T>(
    headers: &HeaderMap,
    name: &'static str,
    form: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, String> {
    let Some(text) = text(headers, name) else { return Ok(None) };
    parse(text).map(Some).ok_or_else(|| odd(name, form, text))
}

fn odd(name: &str, form: &str, text: &str) -> String {
    format!("header {name}: expected {form}, got {text:?}")
}

fn policy(text: &str) -> Option<PolicyId> {
    let mut parts = text.split('/');
    let (epoch, step, digest) = (parts.next()?, parts.next()?, parts.next()?);
    let digest = Digest::try_from(digest.to_owned()).ok()?;
    parts.next().is_none().then_some(PolicyId { epoch: epoch.parse().ok()?, step: step.parse().ok()?, digest })
}

fn check_size(headers: &HeaderMap) -> Result<(), String> {
    let all = headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    let (mut count, mut bytes) = (0, 0);
    for (name, value) in all {
        count += 1;
        bytes += AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4;
    }
    if count > MOST_HEADERS || bytes > MOST_BYTES {
        return Err(format!("{count} headers of {bytes} bytes: at most {MOST_HEADERS} of {MOST_BYTES} are taken"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Envelope {
        let mut envelope = Envelope::new("demo", "g1.0.0");
        envelope.policy = Some(PolicyId { epoch: 3, step: 17, digest: Digest::of(b"adapter") });
        envelope.budget_ms = Some(1500);
        envelope.digest = Some(Digest::of(b"body"));
        envelope.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
        envelope
    }

    #[test]
    fn an_envelope_comes_back() {
        for envelope in [full(), Envelope::new("demo", ""), Envelope { version: 7, ..Envelope::new("demo", "é 1") }] {
            let headers = write(&envelope, 4).unwrap();
            assert_eq!(read(Some(&headers), 4), Ok(envelope));
        }
    }

    #[test]
    fn what_cannot_travel_is_an_error() {
        for key in ["a\r\nNats-Msg-Id: x", " a", "a ", "a\0", &"x".repeat(5000)] {
            assert!(write(&Envelope::new("demo", key), 0).is_err(), "{key:?} was taken");
        }
        let refused = refusal("no\r\nsuch thing ");
        assert_eq!(text(&refused, ERROR), Some("no  such thing"));
        assert_eq!(text(&refusal(&"é".repeat(5000)), ERROR).map(str::len), Some(2048));
    }

    #[test]
    fn odd_headers_are_refused_by_name() {
        let with = |name: &'static str, value: &str| {
            let mut headers = write(&full(), 4).unwrap();
            headers.insert(HeaderName::from_static(name), value.parse::<HeaderValue>().unwrap());
            read(Some(&headers), 4).unwrap_err()
        };
        let cases = [(SCHEMA, "one"), (POLICY, "1/2"), (POLICY, "1/2/xy"), (BUDGET, "-1"), (SHA256, "ab"), (LEN, "5")];
        for (name, value) in cases {
            let error = with(name, value);
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        assert!(read(None, 0).unwrap_err().contains(SCHEMA));
        assert!(read(Some(&HeaderMap::new()), 0).unwrap_err().contains(SCHEMA));
        let mut many = write(&full(), 4).unwrap();
        for n in 0..20 {
            many.append(format!("X-{n}").as_str(), "x");
        }
        assert!(read(Some(&many), 4).unwrap_err().contains("at most 16"));
    }
}
