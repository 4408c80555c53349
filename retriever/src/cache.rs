//! Answers kept, as many as were asked for: those that were used last.

use std::{collections::HashMap, hash::Hash, mem::take};

/// A bounded map in two generations. Entries that are used live on; when the young ones fill half of it, those that were not
/// used since the last time go.
pub(crate) struct Cache<K, V> {
    half: usize,
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// Keeps at most `most` entries; 0 keeps none.
    pub(crate) fn new(most: usize) -> Self {
        Self { half: most / 2, young: HashMap::new(), old: HashMap::new() }
    }

    /// What is kept of `key`.
    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.put(key, value.clone());
        Some(value)
    }

    /// Keeps `value`.
    pub(crate) fn put(&mut self, key: K, value: V) {
        if self.half == 0 {
            return;
        }
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let mut cache = Cache::new(8);
        for key in 0..1000 {
            cache.put(key, key * 2);
            assert_eq!(cache.get(&0), Some(0), "used all the time");
            assert!(cache.young.len() + cache.old.len() <= 8);
        }
        assert_eq!((cache.get(&999), cache.get(&500)), (Some(1998), None));
        let mut none = Cache::new(0);
        none.put(1, 1);
        assert_eq!(none.get(&1), None);
    }
}
