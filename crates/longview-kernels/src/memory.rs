//! Zeroed, aligned memory for weights, KV blocks and the rows that pass through a model.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every buffer: one cache line, one AVX-512 register.
pub const ALIGNMENT: usize = 64;

/// Buffers from this size on come straight from the operating system, aligned to it and offered
/// for huge pages: attention and matrix products over gigabytes otherwise spend their time on
/// page-table walks.
const HUGE_PAGE: usize = 2 << 20;

/// Buffers from this size on are mappings of their own, so that what is dropped goes back to the
/// system and not to the allocator: memory limits are kept by what the system counts.
const OWN_MAPPING: usize = 64 << 10;

/// What the length of a mapping is rounded to: the largest page any system here uses.
#[cfg(target_os = "linux")]
pub(crate) const PAGE: usize = 64 << 10;

/// Asks for the cache line at `p`, which may be any address, into the nearest cache.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    // SAFETY: prefetching reads nothing; any address is allowed.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags));
    }
}

/// The same into the second-level cache: a core may wait for more lines there than it has places for in
/// the nearest, which on Zen 4 then hold up arithmetic as well. On ARM, where that was not measured, into
/// the nearest.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn prefetch_farther(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    prefetch(p);
}

/// Gives what the allocator keeps of freed memory back to the system. After work with many small values,
/// such as turning a book into tokens, that can be more than all contexts have.
pub fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: only touches what is free, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A fixed-size byte buffer, zeroed at birth and aligned to [`ALIGNMENT`].
///
/// Large buffers are untouched pages of the operating system, so they count against the
/// process's resident memory only as they are written, and go back to the system when dropped.
pub struct AlignedBytes {
    start: NonNull<u8>,
    len: usize,
    /// Whether it lies among others of its size.
    in_region: bool,
}

// SAFETY: the buffer is plain bytes owned by this value alone; sharing follows from the borrow
// rules of `Deref` and `DerefMut`.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above; `&AlignedBytes` only gives out `&[u8]`.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// A zeroed buffer of `len` bytes.
    pub fn zeroed(len: usize) -> AlignedBytes {
        AlignedBytes::try_zeroed(len).unwrap_or_else(|| handle_alloc_error(layout(len)))
    }

    /// The same, or `None` when the system has no room for it.
    pub(crate) fn try_zeroed(len: usize) -> Option<AlignedBytes> {
        let start = if len == 0 {
            NonNull::<Line>::dangling().cast()
        } else if is_mapped(len) {
            map_pages(len)?
        } else {
            // SAFETY: `len` is not 0, so neither is the layout's size.
            NonNull::new(unsafe { alloc_zeroed(layout(len)) })?
        };
        Some(AlignedBytes {
            start,
            len,
            in_region: false,
        })
    }

    /// The same, as one of many buffers of this length, of which there are few in a process: they share
    /// huge pages where that makes reading many of them faster. Whatever their number, at most 2 MiB
    /// more are resident than they have.
    pub fn one_of_many(len: usize) -> AlignedBytes {
        #[cfg(target_os = "linux")]
        if crate::regions::pays(len)
            && let Some(start) = crate::regions::take(len)
        {
            return AlignedBytes {
                start,
                len,
                in_region: true,
            };
        }
        AlignedBytes::zeroed(len)
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `len` initialised bytes for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        #[cfg(target_os = "linux")]
        if self.in_region {
            // SAFETY: taken in `one_of_many` with this length, and borrowed by nobody any more.
            return unsafe { crate::regions::give_back(self.start, self.len) };
        }
        if is_mapped(self.len) {
            unmap_pages(self.start, self.len);
        } else {
            // SAFETY: allocated in `zeroed` with this very layout and not freed before.
            unsafe { dealloc(self.start.as_ptr(), layout(self.len)) }
        }
    }
}

/// A buffer of floats that grows, in the memory of an [`AlignedBytes`]: a product writes its rows far
/// apart, so that in small pages each would be looked up anew.
#[derive(Default)]
pub struct Floats {
    bytes: AlignedBytes,
    len: usize,
}

impl Floats {
    /// Sets the length to `len` and gives the numbers. What they are is left open: zeros, or those
    /// that were there. Allocates only when the buffer has never been as long.
    pub fn sized(&mut self, len: usize) -> &mut [f32] {
        if self.capacity() < len {
            // First the old one, so that no two are held at once.
            self.bytes = AlignedBytes::default();
            self.bytes = AlignedBytes::zeroed(len * size_of::<f32>());
        }
        self.len = len;
        self
    }

    /// As [`Floats::sized`] where it is shorter; no number is lost where it is not.
    pub fn at_least(&mut self, len: usize) -> &mut [f32] {
        self.sized(len.max(self.len))
    }

    /// Numbers that there is room for.
    pub fn capacity(&self) -> usize {
        self.bytes.len() / size_of::<f32>()
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: any four bytes are a float, the buffer is aligned, initialised, and not shorter.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_mut_ptr().cast(), self.len) }
    }
}

impl Default for AlignedBytes {
    fn default() -> AlignedBytes {
        AlignedBytes::zeroed(0)
    }
}

/// What the dangling pointer of an empty buffer is aligned like.
#[repr(align(64))]
struct Line;

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len, ALIGNMENT)
        .expect("a buffer's size stays below isize::MAX because sizes are checked on reading")
}

fn is_mapped(len: usize) -> bool {
    cfg!(target_os = "linux") && len >= OWN_MAPPING
}

/// Pages of zeros, huge ones as far as they are whole; `None` when the system has no room for them.
#[cfg(target_os = "linux")]
fn map_pages(len: usize) -> Option<NonNull<u8>> {
    let rounded = len.next_multiple_of(PAGE);
    if len < HUGE_PAGE {
        // SAFETY: an anonymous private mapping at an address of the system's choice.
        let raw = unsafe { map_anonymous(rounded) };
        return NonNull::new(raw.cast());
    }
    let total = rounded + HUGE_PAGE;
    // SAFETY: an anonymous private mapping at an address of the system's choice; the parts cut
    // off below are inside it and page-aligned, because HUGE_PAGE is a multiple of the page size.
    unsafe {
        let raw = map_anonymous(total);
        if raw.is_null() {
            return None;
        }
        let head = raw.cast::<u8>().align_offset(HUGE_PAGE);
        let start = raw.cast::<u8>().add(head);
        if head > 0 {
            libc::munmap(raw, head);
        }
        libc::munmap(start.add(rounded).cast(), HUGE_PAGE - head);
        // The part of a huge page at the end stays in small pages: as one it would be resident
        // whole, up to 2 MiB more than the buffer has.
        libc::madvise(start.cast(), len - len % HUGE_PAGE, libc::MADV_HUGEPAGE);
        NonNull::new(start)
    }
}

/// Gives the whole pages among `len` bytes from `start` on back to the system, where it can; they may be zeros
/// from then on.
///
/// # Safety
/// The bytes are part of an [`AlignedBytes`] that is a mapping of its own, and nobody reads or writes them any
/// more.
pub(crate) unsafe fn discard(start: *mut u8, len: usize) {
    #[cfg(target_os = "linux")]
    {
        let skipped = start.align_offset(PAGE).min(len);
        let whole = (len - skipped) / PAGE * PAGE;
        // SAFETY: pages of a mapping, none of which anybody uses. What the system refuses stays as it is. It is not
        // to put huge pages together around what is left of them.
        unsafe {
            let start = start.add(skipped).cast();
            libc::madvise(start, whole, libc::MADV_NOHUGEPAGE);
            libc::madvise(start, whole, libc::MADV_DONTNEED);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, len);
}

/// Pages of zeros, or null.
///
/// # Safety
/// The caller owns the mapping and unmaps it.
#[cfg(target_os = "linux")]
unsafe fn map_anonymous(len: usize) -> *mut libc::c_void {
    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: no address is asked for, so nothing that is mapped already is touched.
    let raw = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
    if raw == libc::MAP_FAILED {
        std::ptr::null_mut()
    } else {
        raw
    }
}

#[cfg(target_os = "linux")]
fn unmap_pages(start: NonNull<u8>, len: usize) {
    // SAFETY: `map_pages` left exactly this range mapped for this buffer.
    unsafe { libc::munmap(start.as_ptr().cast(), len.next_multiple_of(PAGE)) };
}

#[cfg(not(target_os = "linux"))]
fn map_pages(_len: usize) -> Option<NonNull<u8>> {
    unreachable!("is_mapped is false on this system")
}

#[cfg(not(target_os = "linux"))]
fn unmap_pages(_start: NonNull<u8>, _len: usize) {
    unreachable!("is_mapped is false on this system")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn what_is_freed_among_others_goes_back_to_the_system() {
        let resident = || {
            let counts = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages: usize = counts.split(' ').nth(1).unwrap().parse().unwrap();
            pages * 4096
        };
        // Every hundredth of many small values stays.
        let mut values: Vec<_> = (0..400_000).map(|_| Some(Box::new([1_u8; 96]))).collect();
        for (at, value) in values.iter_mut().enumerate() {
            if at % 100 != 0 {
                *value = None;
            }
        }
        let before = resident();
        give_back_freed();
        let after = resident();
        assert!(after + (16 << 20) < before, "{before} {after}");
        assert_eq!(values.iter().flatten().count(), 4_000);
    }

    #[test]
    fn floats_keep_their_memory_and_their_length() {
        let mut floats = Floats::default();
        assert!(floats.is_empty());
        floats.sized(100).fill(1.0);
        let at = floats.as_ptr();
        assert_eq!(floats.sized(7).len(), 7);
        assert_eq!(floats.at_least(50), [1.0; 50]);
        assert_eq!(floats.at_least(5).len(), 50);
        assert_eq!((floats.capacity(), floats.as_ptr()), (100, at));
        assert_eq!(floats.sized(1000)[999], 0.0);
    }

    #[test]
    fn buffers_are_zeroed_aligned_and_writable() {
        for len in [
            0,
            1,
            63,
            4096,
            OWN_MAPPING,
            OWN_MAPPING + 1,
            HUGE_PAGE,
            HUGE_PAGE + 5,
            3 * HUGE_PAGE - 1,
        ] {
            let mut bytes = AlignedBytes::zeroed(len);
            assert_eq!(bytes.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(bytes.len(), len);
            assert!(bytes.iter().all(|&b| b == 0));
            if let Some(last) = bytes.last_mut() {
                *last = 7;
            }
        }
    }
}
