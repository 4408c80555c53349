//! Finds stop strings in tokens that arrive one by one.

/// Text of token ids, special tokens included. Incomplete UTF-8 at the end shows as U+FFFD.
pub trait TextPiece: Send + Sync {
    /// The text of `ids`.
    fn piece(&self, ids: &[u32]) -> String;
}

/// Watches one sequence for its stop strings.
///
/// A token's text depends on its left neighbour (a leading space may be dropped, a letter may be spread over several
/// tokens), so the watch decodes a short window: the tokens already read since the last clean cut, then the new ones.
#[derive(Clone, Debug, Default)]
pub struct StopWatch {
    stop: Vec<String>,
    ids: Vec<u32>,
    /// Ids before this one belong to text that was read and is complete; they only serve as left context.
    context: usize,
    /// Ids before this one are in `tail`.
    read: usize,
    /// End of the text so far, as long as the longest stop string may need.
    tail: String,
}

impl StopWatch {
    /// A watch for `stop`; empty strings never match.
    pub fn new(stop: &[String]) -> Self {
        Self { stop: stop.iter().filter(|s| !s.is_empty()).cloned().collect(), ..Self::default() }
    }

    /// Takes one more id; true if a stop string is complete now.
    pub fn push(&mut self, id: u32, text: &dyn TextPiece) -> bool {
        if self.stop.is_empty() {
            return false;
        }
        self.ids.push(id);
        let before = text.piece(&self.ids[self.context..self.read]);
        let after = text.piece(&self.ids[self.context..]);
        // Half a letter: wait for the rest of it, but not for ever, because some bytes never become a letter.
        if after.ends_with('\u{fffd}') && self.ids.len() - self.read < 4 {
            return false;
        }
        self.tail.push_str(after.get(before.len()..).unwrap_or(&after));
        self.context = self.read;
        self.read = self.ids.len();
        let found = self.stop.iter().any(|stop| self.tail.contains(stop.as_str()));
        self.trim();
        found
    }

    /// Keeps of the tail what a stop string that is not complete yet may begin with.
    fn trim(&mut self) {
        let keep = self.stop.iter().map(String::len).max().unwrap_or(0);
        let mut cut = self.tail.len().saturating_sub(keep);
        while !self.tail.is_char_boundary(cut) {
            cut += 1;
        }
        self.tail.drain(..cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One byte per id.
    struct Bytes;
    impl TextPiece for Bytes {
        fn piece(&self, ids: &[u32]) -> String {
            String::from_utf8_lossy(&ids.iter().map(|id| *id as u8).collect::<Vec<_>>()).into_owned()
        }
    }

    fn first_hit(stop: &[&str], text: &str) -> Option<usize> {
        let mut watch = StopWatch::new(&stop.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        text.bytes().position(|b| watch.push(u32::from(b), &Bytes))
    }

    #[test]
    fn stops_at_the_token_that_completes_the_string() {
        assert_eq!(first_hit(&["</answer>"], "x</answer> y"), Some(9));
        assert_eq!(first_hit(&["zz", "lo"], "hello zz"), Some(4));
        assert_eq!(first_hit(&["é!"], "caf\u{e9}\u{e9}!"), Some(7));
        assert_eq!(first_hit(&["never"], "nevex never"), Some(10));
        assert_eq!(first_hit(&[""], "abc"), None);
        assert_eq!(first_hit(&["abc"], "ab"), None);
    }

    #[test]
    fn bytes_that_never_become_a_letter_do_not_hide_what_follows() {
        let mut watch = StopWatch::new(&["stop".to_owned()]);
        let ids = [0xff, 0xff, 0xff, 0xff, 0xff, u32::from(b's'), u32::from(b't'), u32::from(b'o'), u32::from(b'p')];
        let hit = ids.iter().position(|id| watch.push(*id, &Bytes));
        assert_eq!(hit, Some(8));
    }
}
