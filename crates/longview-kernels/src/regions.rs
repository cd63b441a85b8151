//! Many buffers of one size, side by side in huge pages.
//!
//! A buffer smaller than a huge page that is mapped alone lies in small pages, and whoever reads many of
//! them, as attention does, waits for a walk of page tables every few kilobytes. So buffers of one
//! size share a region, one after another, the lowest free place first: all but the last huge page is theirs
//! whole. What is given back goes back to the system at once, and its place is kept for the next. Beyond
//! what buffers hold, a region has less than one huge page resident.

use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes of a region: address space, of which only what is written becomes memory.
const REGION: usize = 32 << 20;

/// All regions that hold a buffer.
static REGIONS: Mutex<Vec<Region>> = Mutex::new(Vec::new());

/// Address space that is cut into places of one size.
struct Region {
    /// An address, aligned to a huge page.
    start: usize,
    /// Bytes of a place, a multiple of the system's page.
    place_bytes: usize,
    places: Vec<Place>,
    used: usize,
}

/// What is at a place.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Memory that no buffer has had yet.
    Fresh,
    Used,
    /// Nothing: it was given back.
    Hole,
    /// Zeros: it was given back, but stays mapped.
    Zeros,
}

/// Buffers of so many bytes gain by lying in a region: smaller ones are few huge pages at any number,
/// larger ones have huge pages of their own.
pub(crate) fn pays(len: usize) -> bool {
    (256 << 10..HUGE_PAGE).contains(&len)
}

/// `len` bytes of zeros, aligned to the system's pages; `None` when the system has no room.
pub(crate) fn take(len: usize) -> Option<NonNull<u8>> {
    let place_bytes = len.next_multiple_of(page_bytes());
    let mut regions = lock();
    let free =
        |region: &Region| region.place_bytes == place_bytes && region.used < region.places.len();
    let region = match regions.iter().position(free) {
        Some(at) => &mut regions[at],
        None => {
            regions.push(Region::new(place_bytes)?);
            regions.last_mut()?
        }
    };
    region.take()
}

/// Gives back what [`take`] gave for `len` bytes.
///
/// # Safety
/// `start` is from [`take`] with this `len`, and nothing refers to the bytes any more.
pub(crate) unsafe fn give_back(start: NonNull<u8>, len: usize) {
    let address = start.as_ptr() as usize;
    let mut regions = lock();
    let holds = |region: &Region| (region.start..region.start + REGION).contains(&address);
    let at = regions.iter().position(holds);
    let at = at.expect("a region stays as long as it holds a buffer");
    debug_assert_eq!(regions[at].place_bytes, len.next_multiple_of(page_bytes()));
    // SAFETY: the caller gives up the buffer.
    unsafe { regions[at].give_back(address) };
    if regions[at].used == 0 {
        regions.swap_remove(at);
    }
}

impl Region {
    fn new(place_bytes: usize) -> Option<Region> {
        // SAFETY: an anonymous private mapping at an address of the system's choice; the parts cut off are
        // inside it and aligned to pages, because a huge page is whole pages.
        let start = unsafe {
            let raw = map(std::ptr::null_mut(), REGION + HUGE_PAGE, READ_WRITE)?;
            let head = raw.cast::<u8>().align_offset(HUGE_PAGE);
            let start = raw.cast::<u8>().add(head);
            if head > 0 {
                libc::munmap(raw, head);
            }
            libc::munmap(start.add(REGION).cast(), HUGE_PAGE - head);
            // A refusal costs speed only.
            libc::madvise(start.cast(), REGION, libc::MADV_HUGEPAGE);
            start
        };
        Some(Region {
            start: start as usize,
            place_bytes,
            places: vec![Place::Fresh; REGION / place_bytes],
            used: 0,
        })
    }

    /// The lowest free place.
    fn take(&mut self) -> Option<NonNull<u8>> {
        let at = self.places.iter().position(|place| *place != Place::Used)?;
        let start = (self.start + at * self.place_bytes) as *mut u8;
        if self.places[at] == Place::Hole {
            // SAFETY: the place is inside the region, and no buffer has it.
            unsafe {
                if libc::mprotect(start.cast(), self.place_bytes, READ_WRITE) != 0 {
                    return None;
                }
                libc::madvise(start.cast(), self.place_bytes, libc::MADV_HUGEPAGE);
            }
        }
        self.places[at] = Place::Used;
        self.used += 1;
        NonNull::new(start)
    }

    /// # Safety
    /// Nothing refers to the place at `address` any more.
    unsafe fn give_back(&mut self, address: usize) {
        let at = (address - self.start) / self.place_bytes;
        // A mapping of its own, so that no huge page is ever put together around it.
        // SAFETY: the caller gives up the place, which is inside the region and whole pages.
        self.places[at] = unsafe {
            match map(
                address as *mut libc::c_void,
                self.place_bytes,
                libc::PROT_NONE,
            ) {
                Some(_) => Place::Hole,
                None => {
                    libc::madvise(address as *mut _, self.place_bytes, libc::MADV_DONTNEED);
                    Place::Zeros
                }
            }
        };
        self.used -= 1;
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region is this value's alone, and holds no buffer.
        unsafe { libc::munmap(self.start as *mut libc::c_void, REGION) };
    }
}

const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Pages of zeros: at `at`, instead of what is mapped there, or anywhere where it is null.
///
/// # Safety
/// What is mapped at `at` is the caller's to lose.
unsafe fn map(
    at: *mut libc::c_void,
    len: usize,
    protection: libc::c_int,
) -> Option<*mut libc::c_void> {
    let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed;
    // SAFETY: the caller vouches for what is there.
    let start = unsafe { libc::mmap(at, len, protection, flags, -1, 0) };
    (start != libc::MAP_FAILED).then_some(start)
}

fn page_bytes() -> usize {
    // SAFETY: asks for a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(64 << 10).max(4096)
}

/// A panic inside leaves at worst a place that is never used again.
fn lock() -> MutexGuard<'static, Vec<Region>> {
    REGIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A size that no other test has.
    const LEN: usize = (300 << 10) + 5;

    fn regions_of_this_test() -> usize {
        let place_bytes = LEN.next_multiple_of(page_bytes());
        let regions = lock();
        regions
            .iter()
            .filter(|region| region.place_bytes == place_bytes)
            .count()
    }

    #[test]
    fn places_are_apart_zeroed_and_used_again() {
        assert!(pays(LEN) && !pays(1000) && !pays(HUGE_PAGE));
        let take_and_write = |mark: u8| {
            let start = take(LEN).unwrap();
            // SAFETY: the buffer is this test's alone, and initialised.
            let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), LEN) };
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(mark);
            start
        };
        let mut held: Vec<_> = (0..230).map(|mark| (mark, take_and_write(mark))).collect();
        assert_eq!(regions_of_this_test(), 3);
        let check = |held: &[(u8, NonNull<u8>)]| {
            for (mark, start) in held {
                // SAFETY: as above.
                let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), LEN) };
                assert!(bytes.iter().all(|byte| byte == mark));
            }
        };
        check(&held);
        // Every third goes, and as many come.
        for at in (0..held.len()).rev().step_by(3) {
            // SAFETY: from `take`, and never looked at again.
            unsafe { give_back(held.swap_remove(at).1, LEN) };
        }
        check(&held);
        for mark in 1..=77 {
            held.push((mark, take_and_write(mark)));
        }
        check(&held);
        assert_eq!(regions_of_this_test(), 3);
        for (_, start) in held {
            // SAFETY: as above.
            unsafe { give_back(start, LEN) };
        }
        assert_eq!(regions_of_this_test(), 0);
    }
}
