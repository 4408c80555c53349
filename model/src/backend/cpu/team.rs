//! Splitting an operation over threads. How it is split never changes a bit, so it may depend on anything.

use std::{marker::PhantomData, ops::Range};

use rayon::prelude::*;

/// Work in nanoseconds of one core below which an operation stays on the calling thread: waking others costs microseconds.
const SERIAL_BELOW: usize = 20_000;

/// The threads of a backend.
pub(crate) enum Team {
    /// Rayon's global pool.
    Global,
    /// A pool of its own.
    Own(rayon::ThreadPool),
}

impl Team {
    /// A pool of `threads` (at least 1), or the global one where the system refuses to start threads.
    pub(crate) fn own(threads: usize) -> Self {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
        pool.map_or(Self::Global, Self::Own)
    }

    pub(crate) fn threads(&self) -> usize {
        match self {
            Self::Global => rayon::current_num_threads(),
            Self::Own(pool) => pool.current_num_threads(),
        }
    }

    /// Runs `task(0)` to `task(tasks - 1)` in any order; `work` is a guess of the whole in nanoseconds of one core.
    pub(crate) fn run(&self, tasks: usize, work: usize, task: impl Fn(usize) + Sync) {
        if tasks < 2 || work < SERIAL_BELOW || self.threads() == 1 {
            return (0..tasks).for_each(task);
        }
        let spread = || (0..tasks).into_par_iter().with_max_len(1).for_each(&task);
        match self {
            Self::Global => spread(),
            Self::Own(pool) => pool.install(spread),
        }
    }

    /// Runs `task` on pieces of `0..items`, each a multiple of `grain` long but for the last.
    pub(crate) fn split(&self, items: usize, grain: usize, work: usize, task: impl Fn(Range<usize>) + Sync) {
        let grains = items.div_ceil(grain);
        let pieces = if work < SERIAL_BELOW { 1 } else { grains.min(4 * self.threads()) };
        self.run(pieces, work, |i| {
            let at = |i: usize| (grains * i / pieces * grain).min(items);
            task(at(i)..at(i + 1));
        });
    }
}

/// A slice of which every task writes its own part.
pub(crate) struct Parts<'a, T = f32> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Parts<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Parts<'_, T> {}

// SAFETY: parts are handed out by `part` and `at` alone, whose callers promise that no two tasks touch the same numbers.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The numbers in `range`.
    ///
    /// # Safety
    /// No other part in use overlaps `range`.
    #[allow(clippy::mut_from_ref, reason = "disjoint parts are the purpose")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds; not shared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Pointer to number `index`, which may be the end.
    pub(crate) fn at(&self, index: usize) -> *mut T {
        assert!(index <= self.len);
        // SAFETY: within the slice or its end.
        unsafe { self.start.add(index) }
    }
}
