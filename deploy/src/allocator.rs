//! The allocator of the executable.
//!
//! Every step allocates a few hundred buffers of a few megabytes, each a little larger or smaller than the last time; the system's
//! allocator keeps the holes between them and grows with every step. mimalloc does not, but it keeps what is given back for a
//! second, and copies of an adapter on its way to a file follow each other faster than that. So large memory is asked of the
//! system itself: what is given back is free at once, and the peak is what was in use.

use std::alloc::{GlobalAlloc, Layout};

use mimalloc::MiMalloc;

/// Bytes from which memory is large.
#[cfg(unix)]
const LARGE: usize = 128 << 10;
/// Pages are never smaller.
#[cfg(unix)]
const PAGE: usize = 4096;

/// Bytes of a huge page.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;

/// mimalloc, and pages of the system for what is large.
pub(crate) struct Allocator;

/// True if pages of the system are taken.
#[cfg(unix)]
fn by_pages(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE
}

#[cfg(not(unix))]
fn by_pages(_layout: Layout) -> bool {
    false
}

// SAFETY: whoever gave memory takes it back, since both are told by the layout alone; pages are zero, large enough and aligned as asked.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if by_pages(layout) {
            return pages::map(layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if by_pages(layout) {
            return pages::map(layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise: `at` is of `alloc` with this layout.
        unsafe {
            match by_pages(layout) {
                true => pages::unmap(at, layout.size()),
                false => MiMalloc.dealloc(at, layout),
            }
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size makes a layout.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the caller's promise: `at` is of `alloc` with `layout`; both pieces hold the smaller size, and are apart.
        unsafe {
            match (by_pages(layout), by_pages(new)) {
                (false, false) => MiMalloc.realloc(at, layout, size),
                (true, true) => pages::resize(at, layout.size(), size),
                _ => {
                    let to = self.alloc(new);
                    if !to.is_null() {
                        std::ptr::copy_nonoverlapping(at, to, layout.size().min(size));
                        self.dealloc(at, layout);
                    }
                    to
                }
            }
        }
    }
}

/// Pages of the system; null where it has none.
#[cfg(unix)]
mod pages {
    use std::ptr::null_mut;

    fn or_null(at: *mut libc::c_void) -> *mut u8 {
        if at == libc::MAP_FAILED { null_mut() } else { at.cast() }
    }

    pub(super) fn map(size: usize) -> *mut u8 {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new pages at a place of the system's choice touch no memory that is in use.
        let at = or_null(unsafe { libc::mmap(null_mut(), size, access, kind, -1, 0) });
        use_huge(at, size);
        at
    }

    /// Lets the system back the whole huge pages within new memory as such: what is read from end to end is read faster. A refusal
    /// changes nothing.
    #[cfg(target_os = "linux")]
    fn use_huge(at: *mut u8, size: usize) {
        let skip = at.align_offset(super::HUGE);
        let whole = size.saturating_sub(skip) / super::HUGE * super::HUGE;
        if !at.is_null() && whole > 0 {
            // SAFETY: pages of ours; the advice leaves their contents alone.
            unsafe { libc::madvise(at.add(skip).cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn use_huge(_at: *mut u8, _size: usize) {}

    /// # Safety
    /// `at` is of [`map`] with this size, and nobody uses it.
    pub(super) unsafe fn unmap(at: *mut u8, size: usize) {
        // SAFETY: a whole mapping of ours.
        unsafe { libc::munmap(at.cast(), size) };
    }

    /// # Safety
    /// As [`unmap`].
    #[cfg(target_os = "linux")]
    pub(super) unsafe fn resize(at: *mut u8, size: usize, new: usize) -> *mut u8 {
        // SAFETY: a whole mapping of ours, whose pages go along.
        or_null(unsafe { libc::mremap(at.cast(), size, new, libc::MREMAP_MAYMOVE) })
    }

    /// # Safety
    /// As [`unmap`].
    #[cfg(not(target_os = "linux"))]
    pub(super) unsafe fn resize(at: *mut u8, size: usize, new: usize) -> *mut u8 {
        let to = map(new);
        if !to.is_null() {
            // SAFETY: both hold the smaller size, and are apart.
            unsafe {
                std::ptr::copy_nonoverlapping(at, to, size.min(new));
                unmap(at, size);
            }
        }
        to
    }
}

/// Never asked.
#[cfg(not(unix))]
mod pages {
    pub(super) fn map(_size: usize) -> *mut u8 {
        std::ptr::null_mut()
    }
    pub(super) unsafe fn unmap(_at: *mut u8, _size: usize) {}
    pub(super) unsafe fn resize(_at: *mut u8, _size: usize, _new: usize) -> *mut u8 {
        std::ptr::null_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_its_contents_as_it_grows_and_shrinks() {
        let huge = 16 * LARGE;
        let sizes = [10, LARGE - 1, LARGE, 5 * LARGE + 3, huge - 1, 3 * huge + 5, huge + 1, 2 * LARGE, LARGE - 5, 100];
        for align in [1, 64, PAGE, 4 * PAGE] {
            let mut layout = Layout::from_size_align(1, align).unwrap();
            // SAFETY: every piece is used within its size and given back with its layout.
            unsafe {
                let mut at = Allocator.alloc_zeroed(layout);
                assert_eq!(*at, 0);
                for size in sizes {
                    at = Allocator.realloc(at, layout, size);
                    assert!(!at.is_null() && at.addr().is_multiple_of(align));
                    let kept = layout.size().min(size);
                    layout = Layout::from_size_align(size, align).unwrap();
                    let bytes = std::slice::from_raw_parts_mut(at, size);
                    assert!(bytes[..kept].iter().enumerate().all(|(i, x)| *x == i as u8), "{align} {size}");
                    bytes.iter_mut().enumerate().for_each(|(i, x)| *x = i as u8);
                }
                Allocator.dealloc(at, layout);
            }
        }
    }

    #[test]
    fn large_memory_is_zero_and_what_cannot_be_had_is_null() {
        let layout = Layout::from_size_align(3 * LARGE, 8).unwrap();
        for _ in 0..3 {
            // SAFETY: used within its size and given back with its layout.
            unsafe {
                let at = Allocator.alloc_zeroed(layout);
                let bytes = std::slice::from_raw_parts_mut(at, layout.size());
                assert!(bytes.iter().all(|x| *x == 0));
                bytes.fill(7);
                Allocator.dealloc(at, layout);
            }
        }
        let endless = Layout::from_size_align(isize::MAX as usize - 4096, 8).unwrap();
        // SAFETY: null is not used.
        assert!(unsafe { Allocator.alloc(endless) }.is_null());
    }
}
