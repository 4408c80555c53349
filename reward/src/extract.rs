//! Finds the answer in what a policy wrote: total on any text, and always the last complete answer.

use crate::text::{MAX_COMPLETION_BYTES, tail_bytes};

/// An answer and what is odd about the text around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found<'a> {
    /// The last complete answer, if there is one.
    pub(crate) answer: Option<&'a str>,
    /// Complete answers in the text.
    pub(crate) count: usize,
    /// True if an answer was opened inside another.
    pub(crate) nested: bool,
}

/// Finds `<tag>...</tag>`. An opening tag inside an open block makes the block nested, and a nested block is no answer.
pub(crate) fn tagged<'a>(text: &'a str, tag: &str) -> Found<'a> {
    let text = tail_bytes(text, MAX_COMPLETION_BYTES);
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let mut found = Found { answer: None, count: 0, nested: false };
    let mut rest = text;
    while let Some(start) = rest.find(&open) {
        let body = &rest[start + open.len()..];
        let Some(end) = body.find(&close) else {
            found.nested |= body.contains(&open);
            break;
        };
        found.count += 1;
        if body[..end].contains(&open) {
            found.nested = true;
        } else {
            found.answer = Some(&body[..end]);
        }
        rest = &body[end + close.len()..];
    }
    found
}

/// Finds `\boxed{...}` and `\fbox{...}` with balanced braces. A box inside a box belongs to the outer one.
pub(crate) fn boxed(text: &str) -> Found<'_> {
    let text = tail_bytes(text, MAX_COMPLETION_BYTES);
    let mut found = Found { answer: None, count: 0, nested: false };
    // Every brace is matched once, so that text of nothing but openings costs no more than its length.
    let closing = matching_braces(text);
    let mut from = 0;
    while let Some((start, open)) = next_box(text, from) {
        from = match closing.get(&open) {
            None => start + 1,
            Some(&end) => {
                let body = &text[open + 1..end];
                found.count += 1;
                found.nested |= next_box(body, 0).is_some();
                found.answer = Some(body);
                end + 1
            }
        };
    }
    found
}

/// Place of the next `\boxed` or `\fbox` from byte `from` on, and of its opening brace.
fn next_box(text: &str, from: usize) -> Option<(usize, usize)> {
    let mut from = from;
    while let Some(start) = text[from..].find('\\').map(|i| from + i) {
        let after = &text[start + 1..];
        let name = ["boxed", "fbox"].into_iter().find(|name| after.starts_with(name));
        if let Some(name) = name {
            let tail = &after[name.len()..];
            let open = tail.len() - tail.trim_start_matches(' ').len();
            if tail[open..].starts_with('{') {
                return Some((start, start + 1 + name.len() + open));
            }
        }
        from = start + 1;
    }
    None
}

/// For each opening brace that is closed: its place and that of its closing brace. Escaped braces do not count.
fn matching_braces(text: &str) -> std::collections::HashMap<usize, usize> {
    let mut pairs = std::collections::HashMap::new();
    let mut open = Vec::new();
    let mut escaped = false;
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => open.push(i),
            b'}' => {
                if let Some(start) = open.pop() {
                    pairs.insert(start, i);
                }
            }
            _ => {}
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complete_tagged_answer_counts() {
        let find = |text| tagged(text, "answer");
        assert_eq!(find("<answer>1</answer> <answer>2</answer>").answer, Some("2"));
        assert_eq!(find("<answer>1</answer> <answer>2").answer, Some("1"));
        assert_eq!(find("<answer>1").answer, None);
        assert_eq!(find("</answer>1<answer>").answer, None);
        let nested = find("<answer>1</answer><answer>2<answer>3</answer></answer>");
        assert_eq!((nested.answer, nested.nested), (Some("1"), true));
        assert!(find("<answer><answer>").nested);
        assert_eq!(tagged(&"<answer>9</answer>".repeat(100), "answer").count, 100);
        assert_eq!(find("\u{ff1c}answer>1</answer>").answer, None, "a look-alike is not a tag");
    }

    #[test]
    fn the_last_complete_box_counts_with_its_inner_braces() {
        assert_eq!(boxed(r"\boxed{1} then \boxed{\frac{1}{2}}").answer, Some(r"\frac{1}{2}"));
        assert_eq!(boxed(r"\boxed{1} then \boxed{\frac{1}{2}").answer, Some("1"));
        assert_eq!(boxed(r"\boxed{1").answer, None);
        assert_eq!(boxed(r"\boxed {7} \fbox{8}").answer, Some("8"));
        assert_eq!(boxed(r"\boxed{\{1,2\}}").answer, Some(r"\{1,2\}"));
        assert_eq!(boxed(r"boxed{1} \boxed 5").answer, None);
        let nested = boxed(r"\boxed{\boxed{3}}");
        assert_eq!((nested.answer, nested.nested, nested.count), (Some(r"\boxed{3}"), true, 1));
        assert_eq!(boxed(&r"\boxed{".repeat(50_000)).count, 0);
    }
}
