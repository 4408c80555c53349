//! Splitting an operation over threads. How it is split never changes a bit, so it may depend on anything.
//!
//! A layer is a dozen operations of some tens of microseconds each, so handing out work must cost about one: the calling
//! thread works too, helpers watch for the next job a moment before they sleep, and a helper that comes too late is not
//! waited for.

use std::{
    any::Any,
    cell::Cell,
    marker::PhantomData,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

/// Work in nanoseconds of one core below which an operation stays on the calling thread.
const SERIAL_BELOW: usize = 8_000;
/// Times a helper looks for the next job before it sleeps: some 40 microseconds.
const LOOKS: usize = 2_000;

thread_local! {
    /// True while this thread is in a task of a job.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// Notes that this thread is in a task, until dropped.
struct InTask;

impl InTask {
    fn begin() -> Self {
        IN_TASK.set(true);
        Self
    }
}

impl Drop for InTask {
    fn drop(&mut self) {
        IN_TASK.set(false);
    }
}

/// The tasks that a thread has before it, `next | end << 32`, on a cache line of their own.
#[repr(align(64))]
struct Lane(AtomicU64);

impl Lane {
    fn new(tasks: Range<usize>) -> Self {
        Self(AtomicU64::new(tasks.start as u64 | ((tasks.end as u64) << 32)))
    }

    /// Tasks that nobody has taken.
    fn left(&self) -> u64 {
        let both = self.0.load(Ordering::Relaxed);
        (both >> 32) - (both & u64::from(u32::MAX))
    }

    /// Takes a task: the next, or with `back` the last.
    fn take(&self, back: bool) -> Option<usize> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |both| {
            let (next, end) = (both & u64::from(u32::MAX), both >> 32);
            (next < end).then(|| if back { next | ((end - 1) << 32) } else { (next + 1) | (end << 32) })
        });
        let both = taken.ok()?;
        Some(if back { (both >> 32) - 1 } else { both & u64::from(u32::MAX) } as usize)
    }
}

/// What the helpers of a job run: pulls tasks until there are none.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn() + Sync));

// SAFETY: the closure is Sync, and `Team::run` keeps it alive until no helper is in it.
unsafe impl Send for Job {}

#[derive(Default)]
struct Open {
    job: Option<Job>,
    /// Helpers that may still join the job.
    room: usize,
    sleeping: usize,
    stop: bool,
    /// What a helper's task panicked with.
    panic: Option<Box<dyn Any + Send>>,
}

#[derive(Default)]
struct Shared {
    open: Mutex<Open>,
    wake: Condvar,
    /// Jobs opened so far: what idle helpers watch. Changes only under `open`.
    opened: AtomicU64,
    /// Helpers inside the job. Rises only under `open`.
    running: AtomicUsize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a helper.
    fn help(&self) {
        let mut seen = 0;
        loop {
            let mut looks = 0;
            while self.opened.load(Ordering::Relaxed) == seen && looks < LOOKS {
                std::hint::spin_loop();
                looks += 1;
            }
            let mut open = self.lock();
            while self.opened.load(Ordering::Relaxed) == seen && !open.stop {
                open.sleeping += 1;
                open = self.wake.wait(open).unwrap_or_else(PoisonError::into_inner);
                open.sleeping -= 1;
            }
            if open.stop {
                return;
            }
            seen = self.opened.load(Ordering::Relaxed);
            let Some(job) = open.job.filter(|_| open.room > 0) else { continue };
            open.room -= 1;
            self.running.fetch_add(1, Ordering::Relaxed);
            drop(open);
            // SAFETY: the job was open under the lock, so its caller waits until `running` has fallen again.
            let end = catch_unwind(AssertUnwindSafe(|| unsafe { (*job.0)() }));
            if let Err(panic) = end {
                self.lock().panic = Some(panic);
            }
            self.running.fetch_sub(1, Ordering::Release);
        }
    }
}

/// Closes the job and waits for the helpers inside it, also when the caller's own task panics.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.lock().job = None;
        let mut looks = 0;
        while self.0.running.load(Ordering::Acquire) > 0 {
            looks += 1;
            if looks < LOOKS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// The threads of a backend: the one that calls, and helpers.
pub(crate) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held by the caller whose job is open.
    calling: Mutex<()>,
}

impl Team {
    /// A team of `threads` (at least 1) with the caller, or of as many as the system lets start.
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let start = |i: usize| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("kernels-{i}")).spawn(move || shared.help()).ok()
        };
        let helpers = (1..threads).map_while(start).collect();
        Self { shared, helpers, calling: Mutex::new(()) }
    }

    /// The team that all backends share unless they ask for their own: one thread per core.
    pub(crate) fn global() -> Arc<Self> {
        static GLOBAL: OnceLock<Arc<Team>> = OnceLock::new();
        let cores = || std::thread::available_parallelism().map_or(1, Into::into);
        Arc::clone(GLOBAL.get_or_init(|| Arc::new(Self::new(cores()))))
    }

    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Threads that an operation may be cut for: within a task its own alone.
    pub(crate) fn hands(&self) -> usize {
        if IN_TASK.get() { 1 } else { self.threads() }
    }

    /// Runs `task(0)` to `task(tasks - 1)` in any order; `work` is a guess of the whole in nanoseconds of one core. A call
    /// from within a task, or while another thread's job is open, runs on its own thread alone.
    ///
    /// Neighbouring tasks go to one thread, so that what it asked memory for ahead is what it needs; who is done takes the last tasks of
    /// who has most left.
    pub(crate) fn run(&self, tasks: usize, work: usize, task: impl Fn(usize) + Sync) {
        if tasks < 2 || work < SERIAL_BELOW || self.hands() < 2 {
            return (0..tasks).for_each(task);
        }
        let _calling = match self.calling.try_lock() {
            Ok(guard) => guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return (0..tasks).for_each(task),
        };
        assert!(u32::try_from(tasks).is_ok(), "team: {tasks} tasks, expected fewer than 2^32");
        let hands = self.threads().min(tasks);
        let lanes: Vec<Lane> = (0..hands).map(|i| Lane::new(tasks * i / hands..tasks * (i + 1) / hands)).collect();
        let pull = |own: usize| {
            let _in_task = InTask::begin();
            while let Some(i) = lanes[own].take(false) {
                task(i);
            }
            // each lane is looked at once a round, so that nobody leaves while one of them has tasks
            let fullest = || lanes.iter().map(|lane| (lane.left(), lane)).max_by_key(|(left, _)| *left);
            while let Some((1.., lane)) = fullest() {
                lane.take(true).into_iter().for_each(&task);
            }
        };
        // the caller's own lane is the first
        let joined = AtomicUsize::new(1);
        let help = || pull(joined.fetch_add(1, Ordering::Relaxed));
        let job: *const (dyn Fn() + Sync + '_) = &help;
        // SAFETY: only the lifetime changes; `Closing` ends all use of the job before `help` goes.
        let job = Job(unsafe { std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const (dyn Fn() + Sync)>(job) });
        {
            let mut open = self.shared.lock();
            open.job = Some(job);
            open.room = hands - 1;
            self.shared.opened.fetch_add(1, Ordering::Relaxed);
            if open.sleeping > 0 {
                self.shared.wake.notify_all();
            }
        }
        {
            let _closing = Closing(&self.shared);
            pull(0);
        }
        let panic = self.shared.lock().panic.take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Runs `task` on pieces of `0..items`, each a multiple of `grain` long but for the last.
    pub(crate) fn split(&self, items: usize, grain: usize, work: usize, task: impl Fn(Range<usize>) + Sync) {
        let grains = items.div_ceil(grain);
        let hands = self.hands();
        let pieces = if work < SERIAL_BELOW || hands < 2 { grains.min(1) } else { grains.min(4 * hands) };
        self.run(pieces, work, |i| {
            let at = |i: usize| (grains * i / pieces * grain).min(items);
            task(at(i)..at(i + 1));
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_all();
        // a helper's own panic was given to the caller of its job
        self.helpers.drain(..).for_each(|helper| drop(helper.join()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whoever_calls() {
        let team = Arc::new(Team::new(3));
        let callers: Vec<_> = (0..3)
            .map(|caller: usize| {
                let team = Arc::clone(&team);
                std::thread::spawn(move || {
                    for round in 0..3000 {
                        let tasks = 2 + (round * 7 + caller) % 40;
                        let mut done = vec![0u8; tasks];
                        let parts = Parts::new(&mut done);
                        // SAFETY: a number belongs to one task.
                        team.run(tasks, usize::MAX, |i| unsafe { parts.part(i..i + 1)[0] += 1 });
                        assert!(done.iter().all(|d| *d == 1), "{done:?}");
                        if round % 500 == 0 {
                            // long enough for helpers to fall asleep
                            std::thread::sleep(std::time::Duration::from_millis(1));
                        }
                    }
                })
            })
            .collect();
        callers.into_iter().for_each(|c| c.join().unwrap());
    }

    #[test]
    fn a_task_may_call_the_team_again() {
        let team = Team::new(2);
        let count = AtomicUsize::new(0);
        team.run(8, usize::MAX, |_| {
            team.run(8, usize::MAX, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 64);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(2);
        for round in 0..50 {
            let end = catch_unwind(AssertUnwindSafe(|| team.run(16, usize::MAX, |i| assert_ne!(i, round % 16))));
            assert!(end.is_err());
            let count = AtomicUsize::new(0);
            team.run(16, usize::MAX, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 16);
        }
    }

    #[test]
    fn pieces_cover_all_items_once() {
        let team = Team::new(2);
        for (items, grain) in [(1, 1), (10, 3), (100, 16), (5, 100), (0, 4)] {
            let mut done = vec![0u8; items];
            let parts = Parts::new(&mut done);
            // SAFETY: pieces do not overlap.
            team.split(items, grain, usize::MAX, |range| unsafe {
                assert!(range.start.is_multiple_of(grain));
                parts.part(range).iter_mut().for_each(|d| *d += 1);
            });
            assert!(done.iter().all(|d| *d == 1));
        }
    }
}
