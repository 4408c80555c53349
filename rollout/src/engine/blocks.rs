//! The book-keeping of the key-value cache: who holds which block, and which blocks hold a known prefix.
//!
//! No numbers here, only block names. A block is in exactly one of three states:
//! - **held**: at least one sequence counts on it;
//! - **cached**: nobody holds it, but its content is published, so that a later sequence may take it up; the least recently
//!   held goes first when room is needed;
//! - **free**.
//!
//! A published block is never written again: who wants to write into it takes a copy. Published content is found by an
//! exact chain, (content of the block before, tokens in this block), that starts at a root per policy: two policies never
//! share a block, and no two prefixes are ever taken for each other. Sequences release their blocks tail first, so that a
//! cached block always goes before the one that it continues.

use std::collections::{BTreeMap, HashMap};

use folgore_model::backend::BLOCK;
use folgore_protocol::PolicyId;

/// Names what a published block holds, together with everything before it. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Content(u64);

/// Where published content is found: the content before it and its tokens, at most [`BLOCK`] of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    parent: Content,
    tokens: Box<[u32]>,
}

/// A published content: its name, its key and what was noted with it.
#[derive(Debug)]
struct Published<N> {
    content: Content,
    key: Key,
    policy: PolicyId,
    note: Option<N>,
}

#[derive(Debug)]
struct Block<N> {
    holders: u32,
    published: Option<Published<N>>,
    /// Place in the order of eviction; meaningful while cached.
    released_at: u64,
}

/// What is known of a token sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefix<N> {
    /// Blocks that hold its beginning, in order; nobody holds them on behalf of the asker yet.
    pub blocks: Vec<u32>,
    /// The content before each of its full blocks, then that after the last one; begins with the policy's root.
    contents: Vec<Content>,
    /// What was noted at its very end; only where every token is covered.
    pub note: Option<N>,
}

impl<N> Prefix<N> {
    /// Full blocks at its beginning; a partial one may follow them.
    pub fn full(&self) -> usize {
        self.contents.len() - 1
    }

    /// Content of the last full block, or the policy's root.
    pub fn parent(&self) -> Content {
        self.contents[self.full()]
    }

    /// Keeps at most `full` full blocks, and nothing of what follows.
    pub fn truncate(&mut self, full: usize) {
        self.contents.truncate(full + 1);
        self.blocks.truncate(self.full());
        self.note = None;
    }
}

/// All blocks of one cache. `N` is what may be noted at the end of a prompt.
#[derive(Debug)]
pub struct Blocks<N> {
    blocks: Vec<Block<N>>,
    free: Vec<u32>,
    cached: BTreeMap<u64, u32>,
    index: HashMap<Key, u32>,
    roots: HashMap<PolicyId, Content>,
    contents: u64,
    clock: u64,
}

impl<N: Clone> Blocks<N> {
    /// A cache of `count` free blocks.
    pub fn new(count: usize) -> Self {
        Self {
            blocks: (0..count).map(|_| Block { holders: 0, published: None, released_at: 0 }).collect(),
            free: (0..count as u32).rev().collect(),
            cached: BTreeMap::new(),
            index: HashMap::new(),
            roots: HashMap::new(),
            contents: 0,
            clock: 0,
        }
    }

    /// Number of blocks.
    pub fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`Blocks::allocate`] could hand out now: free and cached ones.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// Blocks held by a sequence.
    pub fn held(&self) -> usize {
        self.count() - self.available()
    }

    /// The content before the first block of every sequence of `policy`.
    pub fn root(&mut self, policy: PolicyId) -> Content {
        if let Some(root) = self.roots.get(&policy) {
            return *root;
        }
        let root = self.new_content();
        self.roots.insert(policy, root);
        root
    }

    /// Finds the longest published beginning of `tokens`; the last partial block counts only where it completes them.
    pub fn lookup(&mut self, policy: PolicyId, tokens: &[u32]) -> Prefix<N> {
        let mut prefix = Prefix { blocks: Vec::new(), contents: vec![self.root(policy)], note: None };
        let mut note = None;
        for chunk in tokens.chunks(BLOCK) {
            let Some(block) = self.find(prefix.parent(), chunk) else { return prefix };
            let Some(published) = &self.blocks[block as usize].published else { return prefix };
            prefix.blocks.push(block);
            note = published.note.as_ref();
            if chunk.len() == BLOCK {
                prefix.contents.push(published.content);
            }
        }
        prefix.note = note.cloned();
        prefix
    }

    /// Blocks of `blocks` that are cached now: holding them makes that many fewer available.
    pub fn cached_among(&self, blocks: &[u32]) -> usize {
        blocks.iter().filter(|b| self.blocks[**b as usize].holders == 0).count()
    }

    /// Takes a block with no content for one holder; cached content is given up where nothing is free. None if all are held.
    pub fn allocate(&mut self) -> Option<u32> {
        if self.free.is_empty() {
            let (_, oldest) = self.cached.pop_first()?;
            self.withdraw(oldest);
            self.free.push(oldest);
        }
        let block = self.free.pop()?;
        self.blocks[block as usize].holders = 1;
        Some(block)
    }

    /// Adds a holder to a held or cached block.
    pub fn hold(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        if state.holders == 0 {
            let was = self.cached.remove(&state.released_at);
            debug_assert_eq!(was, Some(block), "held a free block");
        }
        state.holders += 1;
    }

    /// Takes a holder away. The last one leaves the block cached if it is published, else free.
    pub fn release(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        assert!(state.holders > 0, "block {block} released more often than held");
        state.holders -= 1;
        if state.holders > 0 {
            return;
        }
        if state.published.is_some() {
            self.clock += 1;
            state.released_at = self.clock;
            self.cached.insert(self.clock, block);
        } else {
            self.free.push(block);
        }
    }

    /// Makes the content of a held block findable. Where the same content is published already, the caller's block is
    /// released and the published one held in its place. Returns the block to go on with and the name of the content.
    pub fn publish(&mut self, policy: PolicyId, parent: Content, tokens: &[u32], block: u32) -> (u32, Content) {
        debug_assert!(!tokens.is_empty() && tokens.len() <= BLOCK);
        if let Some(known) = self.find(parent, tokens)
            && let Some(published) = &self.blocks[known as usize].published
        {
            let content = published.content;
            if known != block {
                self.hold(known);
                self.release(block);
            }
            return (known, content);
        }
        self.withdraw(block);
        let content = self.new_content();
        let key = Key { parent, tokens: tokens.into() };
        self.index.insert(key.clone(), block);
        self.blocks[block as usize].published = Some(Published { content, key, policy, note: None });
        (block, content)
    }

    /// Notes something at the end of a published block; it is forgotten with the content.
    pub fn note(&mut self, block: u32, note: N) {
        if let Some(published) = &mut self.blocks[block as usize].published {
            published.note = Some(note);
        }
    }

    /// True if `block` may not be written.
    pub fn is_published(&self, block: u32) -> bool {
        self.blocks[block as usize].published.is_some()
    }

    /// Number of holders of `block`.
    pub fn holders(&self, block: u32) -> u32 {
        self.blocks[block as usize].holders
    }

    /// Forgets the content of `block`, so that its one holder may write it.
    pub fn withdraw(&mut self, block: u32) {
        if let Some(published) = self.blocks[block as usize].published.take() {
            self.index.remove(&published.key);
        }
    }

    /// Forgets everything of `policy`: its cached blocks become free. Blocks still held become free when released.
    pub fn forget(&mut self, policy: PolicyId) {
        self.roots.remove(&policy);
        for block in 0..self.blocks.len() as u32 {
            let state = &self.blocks[block as usize];
            if state.published.as_ref().is_none_or(|p| p.policy != policy) {
                continue;
            }
            if state.holders == 0 {
                self.cached.remove(&state.released_at);
                self.free.push(block);
            }
            self.withdraw(block);
        }
    }

    fn find(&self, parent: Content, tokens: &[u32]) -> Option<u32> {
        self.index.get(&Key { parent, tokens: tokens.into() }).copied()
    }

    fn new_content(&mut self) -> Content {
        self.contents += 1;
        Content(self.contents)
    }

    /// Panics unless every block is in exactly one state and the index names published blocks only. For tests.
    #[cfg(test)]
    pub(crate) fn check(&self, held: &[&[u32]]) {
        let mut expected = vec![0u32; self.count()];
        held.iter().copied().flatten().for_each(|b| expected[*b as usize] += 1);
        let mut seen = vec![0; self.count()];
        self.free.iter().chain(self.cached.values()).for_each(|b| seen[*b as usize] += 1);
        for (i, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.holders, expected[i], "holders of block {i}");
            assert_eq!(seen[i], u32::from(block.holders == 0), "block {i} is listed {} times", seen[i]);
            assert!(
                block.published.is_some() || !self.cached.values().any(|b| *b as usize == i),
                "block {i} cached empty"
            );
            if let Some(published) = &block.published {
                assert_eq!(self.index.get(&published.key), Some(&(i as u32)));
            }
        }
        assert_eq!(self.index.len(), self.blocks.iter().filter(|b| b.published.is_some()).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use folgore_protocol::Digest;
    use proptest::prelude::*;

    fn policy(step: u64) -> PolicyId {
        PolicyId { epoch: 0, step, digest: Digest::of(&step.to_le_bytes()) }
    }

    /// Publishes `tokens` from their first block on and gives the blocks, held once.
    fn store(blocks: &mut Blocks<u8>, step: u64, tokens: &[u32]) -> Vec<u32> {
        let mut parent = blocks.root(policy(step));
        let mut table = Vec::new();
        for chunk in tokens.chunks(BLOCK) {
            let block = blocks.allocate().unwrap();
            let (block, content) = blocks.publish(policy(step), parent, chunk, block);
            parent = content;
            table.push(block);
        }
        table
    }

    fn release(blocks: &mut Blocks<u8>, table: &[u32]) {
        table.iter().rev().for_each(|b| blocks.release(*b));
    }

    #[test]
    fn a_prefix_is_found_block_by_block_and_only_under_its_policy() {
        let mut blocks = Blocks::<u8>::new(8);
        let tokens: Vec<u32> = (0..40).collect();
        let table = store(&mut blocks, 1, &tokens);
        blocks.note(table[2], 7);
        let whole = blocks.lookup(policy(1), &tokens);
        assert_eq!((whole.blocks.as_slice(), whole.full(), whole.note), (table.as_slice(), 2, Some(7)));
        let shorter = blocks.lookup(policy(1), &tokens[..39]);
        assert_eq!((shorter.blocks.len(), shorter.full(), shorter.note), (2, 2, None));
        assert!(blocks.lookup(policy(2), &tokens).blocks.is_empty());
        let mut other = tokens.clone();
        other[0] = 99;
        assert!(blocks.lookup(policy(1), &other).blocks.is_empty(), "the second block was found without the first");
    }

    #[test]
    fn the_same_content_is_published_once() {
        let mut blocks = Blocks::<u8>::new(4);
        let first = store(&mut blocks, 1, &[1; BLOCK]);
        let second = store(&mut blocks, 1, &[1; BLOCK]);
        assert_eq!(first, second);
        assert_eq!((blocks.holders(first[0]), blocks.available()), (2, 3));
        blocks.check(&[&first, &second]);
    }

    #[test]
    fn room_is_made_from_the_least_recently_released_tail_first() {
        let mut blocks = Blocks::<u8>::new(3);
        let old = store(&mut blocks, 1, &(0..32).collect::<Vec<_>>());
        release(&mut blocks, &old);
        let new = store(&mut blocks, 1, &[50; BLOCK]);
        release(&mut blocks, &new);
        let taken = blocks.allocate().unwrap();
        assert_eq!(taken, old[1], "the tail of the oldest goes first");
        assert_eq!(blocks.lookup(policy(1), &(0..32).collect::<Vec<_>>()).blocks, [old[0]]);
        blocks.allocate().unwrap();
        assert_eq!(blocks.lookup(policy(1), &[50; BLOCK]).blocks, new);
        blocks.allocate().unwrap();
        assert_eq!(blocks.allocate(), None);
    }

    #[test]
    fn a_forgotten_policy_frees_its_blocks_also_those_still_held() {
        let mut blocks = Blocks::<u8>::new(4);
        let held = store(&mut blocks, 1, &[1; BLOCK]);
        let cached = store(&mut blocks, 1, &[2; BLOCK]);
        release(&mut blocks, &cached);
        blocks.forget(policy(1));
        assert!(blocks.lookup(policy(1), &[1; BLOCK]).blocks.is_empty());
        blocks.check(&[&held]);
        release(&mut blocks, &held);
        blocks.check(&[]);
        assert_eq!(blocks.free.len(), 4);
    }

    proptest! {
        /// Whatever sequences do, no block leaks, none is freed twice and a held block keeps its content.
        #[test]
        fn no_block_leaks(ops in prop::collection::vec((0u8..5, 0u32..4, 1usize..70), 1..120)) {
            let mut blocks = Blocks::<u8>::new(10);
            let mut tables: Vec<Vec<u32>> = Vec::new();
            for (op, token, len) in ops {
                match op {
                    0 | 1 => {
                        let tokens: Vec<u32> = (0..len as u32).map(|i| if i % 20 == 0 { token } else { i }).collect();
                        let found = blocks.lookup(policy(u64::from(token % 2)), &tokens);
                        let need = tokens.len().div_ceil(BLOCK) - found.blocks.len();
                        if need > blocks.available() - blocks.cached_among(&found.blocks) {
                            continue;
                        }
                        found.blocks.iter().for_each(|b| blocks.hold(*b));
                        let mut table = found.blocks.clone();
                        let mut parent = found.parent();
                        for chunk in tokens.chunks(BLOCK).skip(table.len()) {
                            let own = blocks.allocate().expect("room was counted");
                            let (block, content) = blocks.publish(policy(u64::from(token % 2)), parent, chunk, own);
                            parent = content;
                            table.push(block);
                        }
                        tables.push(table);
                    }
                    2 if !tables.is_empty() => {
                        let table = tables.swap_remove(len % tables.len());
                        release(&mut blocks, &table);
                    }
                    3 => {
                        if let Some(block) = blocks.allocate() {
                            tables.push(vec![block]);
                        }
                    }
                    4 if len % 8 == 0 => blocks.forget(policy(u64::from(token % 2))),
                    _ => {}
                }
                blocks.check(&tables.iter().map(Vec::as_slice).collect::<Vec<_>>());
            }
            tables.iter().for_each(|table| release(&mut blocks, table));
            prop_assert_eq!(blocks.available(), 10);
        }
    }
}
