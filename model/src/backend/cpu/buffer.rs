//! Aligned buffers that go back to a free list when dropped: allocating and zeroing large memory costs as much as a layer.
//!
//! The list is no second heap: buffers in use and free ones together take hardly more than the most that were ever in use at once.
//! Where fresh memory would exceed that, the buffers that have been free for longest go back to the system first.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

/// Bytes of a cache line: every buffer begins on one.
const ALIGN: usize = 64;
/// Numbers that the free list holds at most: 1 GiB.
const FREE_LIMIT: usize = 1 << 28;
/// Numbers by which used and free buffers may exceed the most that were in use: 32 MiB, so that small models never wait for the system.
const SLACK: usize = 1 << 23;

/// A piece of memory of `capacity` numbers, all of them initialised at all times.
struct Memory {
    /// What the allocator gave.
    base: NonNull<u8>,
    capacity: usize,
}

// SAFETY: `Memory` owns its allocation alone.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads.
unsafe impl Sync for Memory {}

impl Memory {
    /// Large zeroed pieces come as untouched pages as long as the allocator is asked for its own alignment; hence the spare
    /// bytes and the alignment by hand in [`Memory::start`].
    fn layout(capacity: usize) -> Layout {
        let bytes = capacity.checked_mul(size_of::<f32>()).and_then(|b| b.checked_add(ALIGN));
        bytes.and_then(|b| Layout::from_size_align(b, 16).ok()).expect("a buffer fits the address space")
    }

    fn zeroed(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the layout has at least ALIGN bytes.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        use_huge_pages(base.as_ptr(), layout.size());
        Self { base, capacity }
    }

    fn start(&self) -> *mut f32 {
        let at = self.base.as_ptr();
        // SAFETY: at most ALIGN - 1 bytes further, and ALIGN spare bytes were allocated.
        unsafe { at.add(at.align_offset(ALIGN)).cast() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed` with this very layout.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// Asks Linux to back large memory by pages of 2 MiB: a matrix read from end to end is a tenth faster for it. Only whole
/// huge pages within the piece are named, and a refusal changes nothing.
#[cfg(target_os = "linux")]
fn use_huge_pages(at: *mut u8, bytes: usize) {
    const HUGE: usize = 2 << 20;
    let skip = at.align_offset(HUGE);
    let whole = bytes.saturating_sub(skip) / HUGE * HUGE;
    if whole > 0 {
        // SAFETY: the range lies in an allocation of ours that nobody uses yet; the advice leaves its contents alone.
        unsafe { libc::madvise(at.add(skip).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn use_huge_pages(_at: *mut u8, _bytes: usize) {}

#[derive(Default)]
struct Free {
    /// With the time since when it is free.
    by_capacity: BTreeMap<usize, Vec<(u64, Memory)>>,
    numbers: usize,
    /// Numbers in use, and the most that ever were.
    used: usize,
    most_used: usize,
    clock: u64,
}

impl Free {
    fn take(&mut self, capacity: usize, oldest: bool) -> Option<Memory> {
        let list = self.by_capacity.get_mut(&capacity)?;
        let (_, memory) = if oldest { list.remove(0) } else { list.pop()? };
        if list.is_empty() {
            self.by_capacity.remove(&capacity);
        }
        self.numbers -= capacity;
        Some(memory)
    }

    /// Counts `capacity` numbers as used.
    fn using(&mut self, capacity: usize) {
        self.used += capacity;
        self.most_used = self.most_used.max(self.used);
    }

    /// What has to go so that no more than `most` numbers are free, longest free first.
    fn excess(&mut self, most: usize) -> Vec<Memory> {
        let mut excess = Vec::new();
        while self.numbers > most {
            // lists are in the order of time
            let oldest = self.by_capacity.iter().min_by_key(|(_, list)| list.first().map(|(since, _)| *since));
            let Some(capacity) = oldest.map(|(capacity, _)| *capacity) else { break };
            excess.extend(self.take(capacity, true));
        }
        excess
    }
}

/// The free list of one backend.
#[derive(Default)]
pub(crate) struct BufferPool {
    free: Mutex<Free>,
}

impl BufferPool {
    /// A buffer of `len` numbers of unspecified value; true if they are known to be zero.
    fn take(self: &Arc<Self>, len: usize) -> (CpuBuf, bool) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fit = free.by_capacity.range(len..=len + len / 4 + 64).next().map(|(capacity, _)| *capacity);
        let recycled = fit.and_then(|capacity| free.take(capacity, false));
        let capacity = recycled.as_ref().map_or_else(|| len.next_multiple_of(16), |memory| memory.capacity);
        free.using(capacity);
        let most = free.most_used + SLACK - free.used;
        let excess = if recycled.is_none() { free.excess(most) } else { Vec::new() };
        drop(free);
        // before the new memory is touched
        drop(excess);
        let fresh = recycled.is_none();
        let memory = recycled.unwrap_or_else(|| Memory::zeroed(capacity));
        (CpuBuf { memory: Some(memory), len, pool: Arc::clone(self) }, fresh)
    }

    /// A buffer of `len` numbers of unspecified value.
    pub(crate) fn alloc(self: &Arc<Self>, len: usize) -> CpuBuf {
        self.take(len).0
    }

    /// A buffer of `len` zeros.
    pub(crate) fn zeros(self: &Arc<Self>, len: usize) -> CpuBuf {
        let (mut buf, zero) = self.take(len);
        if !zero {
            buf.fill(0.0);
        }
        buf
    }

    /// Gives free buffers back to the system, but for [`SLACK`].
    pub(crate) fn trim(&self) {
        let excess = self.free.lock().unwrap_or_else(PoisonError::into_inner).excess(SLACK);
        drop(excess);
    }

    fn put(&self, memory: Memory) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.used -= memory.capacity;
        if memory.capacity > 0 && free.numbers + memory.capacity <= FREE_LIMIT {
            (free.numbers, free.clock) = (free.numbers + memory.capacity, free.clock + 1);
            let since = free.clock;
            free.by_capacity.entry(memory.capacity).or_default().push((since, memory));
        }
    }
}

/// f32 numbers that begin on a cache line; dropped, they go back to their pool.
pub struct CpuBuf {
    /// None only while being dropped.
    memory: Option<Memory>,
    len: usize,
    pool: Arc<BufferPool>,
}

impl CpuBuf {
    fn start(&self) -> *mut f32 {
        self.memory.as_ref().map_or(NonNull::dangling().as_ptr(), Memory::start)
    }
}

impl Deref for CpuBuf {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` numbers lie within the memory, which is always initialised and owned by self.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl DerefMut for CpuBuf {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and self is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl Drop for CpuBuf {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.put(memory);
        }
    }
}

impl std::fmt::Debug for CpuBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuBuf").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_reused_and_zeroed_when_asked() {
        let pool = Arc::new(BufferPool::default());
        let mut first = pool.zeros(1000);
        assert!(first.iter().all(|x| *x == 0.0));
        assert_eq!(first.as_ptr().align_offset(ALIGN), 0);
        first.fill(7.0);
        let at = first.as_ptr();
        drop(first);
        let again = pool.zeros(900);
        assert_eq!(again.as_ptr(), at, "a near fit is reused");
        assert_eq!(again.len(), 900);
        assert!(again.iter().all(|x| *x == 0.0), "a reused buffer is zeroed");
        assert_ne!(pool.alloc(10).as_ptr(), at, "memory in use is not handed out");
        assert!(pool.alloc(0).is_empty());
    }

    #[test]
    fn the_free_list_is_bounded() {
        let pool = Arc::new(BufferPool::default());
        let large: Vec<CpuBuf> = (0..5).map(|_| pool.alloc(FREE_LIMIT / 4)).collect();
        drop(large);
        assert_eq!(pool.free.lock().unwrap().numbers, FREE_LIMIT);
    }

    #[test]
    fn buffers_of_other_sizes_take_the_place_of_free_ones() {
        let pool = Arc::new(BufferPool::default());
        let held = |pool: &BufferPool| {
            let free = pool.free.lock().unwrap();
            (free.used, free.numbers)
        };
        let size = SLACK;
        drop(pool.alloc(4 * size));
        // ever other sizes: never more than the most that were used, and the slack
        for i in 0..20 {
            let first = pool.alloc(size + i * size / 16);
            let second = pool.alloc(size / 2 + i * size / 32);
            let (used, free) = held(&pool);
            assert_eq!(used, first.len() + second.len());
            assert!(used + free <= 4 * size + SLACK, "{i}: {used} {free}");
        }
        // the one that was free for longest went first
        let pool = Arc::new(BufferPool::default());
        let (old, new) = (pool.alloc(size), pool.alloc(2 * size));
        let new_at = new.as_ptr();
        drop(old);
        drop(new);
        let _other = pool.alloc(size / 2);
        let _more = pool.alloc(size + size / 2);
        assert_eq!(held(&pool).1, 2 * size);
        assert_eq!(pool.alloc(2 * size).as_ptr(), new_at);
        pool.trim();
        assert!(held(&pool).1 <= SLACK, "{:?}", held(&pool));
    }
}
