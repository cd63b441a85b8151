//! Memory for weights: many matrices in a few large buffers.
//!
//! A large buffer consists of huge pages. What of a matrix lies outside of them, which is all of a small one and
//! the end of a large one, is read at half the speed; so matrices lie one right after the other, and up to one
//! huge page of each buffer is held for nothing.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::memory::{ALIGNMENT, AlignedBytes, discard};

/// Bytes of a buffer that matrices share: address space, of which only what is written becomes memory. Where
/// pages cannot be given back one by one, few matrices wait for each other.
const SHARED: usize = if cfg!(target_os = "linux") {
    256 << 20
} else {
    16 << 20
};

/// A huge page: as part of one, the end of a matrix is read as fast as the rest.
const HUGE_PAGE: usize = 2 << 20;

/// The buffer that the next matrices go into, for as long as any of those in it lives.
static CURRENT: Mutex<Weak<Buffer>> = Mutex::new(Weak::new());

/// Zeroed memory aligned to 64 bytes, a part of a large buffer. Its pages go with it, on Linux; the rest of the buffer
/// goes when all parts have.
pub(super) struct Room {
    buffer: Arc<Buffer>,
    start: usize,
    len: usize,
}

impl Room {
    /// Room for `len` bytes.
    pub(super) fn new(len: usize) -> Room {
        let whole = len.next_multiple_of(ALIGNMENT);
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = match current.upgrade() {
            Some(buffer) if whole <= buffer.free() => buffer,
            _ => {
                let buffer = Arc::new(Buffer::new(whole));
                *current = Arc::downgrade(&buffer);
                buffer
            }
        };
        let start = buffer.take(whole);
        Room { buffer, start, len }
    }
}

impl Deref for Room {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start..start + len` lies inside the buffer, is initialised, and belongs to this
        // room alone.
        unsafe { std::slice::from_raw_parts(self.buffer.first.add(self.start), self.len) }
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.first.add(self.start), self.len) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: this room's part of a buffer that is there, which nobody else uses nor will again.
        unsafe { discard(self.buffer.first.add(self.start), self.len) };
    }
}

/// A buffer and how much of it is given out.
struct Buffer {
    /// First byte of `bytes`, through which rooms are read and written: a slice of all of them would overlap
    /// what another thread writes.
    first: *mut u8,
    len: usize,
    /// Only held.
    _bytes: AlignedBytes,
    used: Mutex<usize>,
}

// SAFETY: `first` is only used by rooms, each within its own part.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// One with room for `len` bytes, and for others where the system lets it have so much.
    fn new(len: usize) -> Buffer {
        let shared = len.max(SHARED).next_multiple_of(HUGE_PAGE);
        let bytes = AlignedBytes::try_zeroed(shared);
        let mut bytes = bytes.unwrap_or_else(|| AlignedBytes::zeroed(len));
        Buffer {
            first: bytes.as_mut_ptr(),
            len: bytes.len(),
            _bytes: bytes,
            used: Mutex::new(0),
        }
    }

    fn free(&self) -> usize {
        self.len - *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives out `len` bytes, which are free, and returns where they begin.
    fn take(&self, len: usize) -> usize {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let start = *used;
        *used += len;
        assert!(*used <= self.len, "only free bytes are taken");
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PAGE;

    #[test]
    fn rooms_are_apart_zeroed_and_aligned() {
        let sizes = [0, 1, 100, 3 << 20, 9 << 20, 6 << 20, 64];
        let mut rooms: Vec<Room> = sizes.iter().map(|&len| Room::new(len)).collect();
        for (i, room) in rooms.iter_mut().enumerate() {
            assert_eq!(room.as_ptr() as usize % ALIGNMENT, 0);
            assert!(room.iter().all(|&byte| byte == 0));
            room.fill(i as u8 + 1);
        }
        rooms.remove(3);
        rooms.push(Room::new(2 << 20));
        assert!(
            rooms
                .pop()
                .is_some_and(|room| room.iter().all(|&byte| byte == 0))
        );
        for (i, room) in rooms.iter().enumerate() {
            let fill = if i < 3 { i + 1 } else { i + 2 } as u8;
            assert!(room.iter().all(|&byte| byte == fill));
        }
    }

    #[test]
    fn what_is_larger_than_a_shared_buffer_has_one_of_its_size() {
        let room = Room::new(SHARED + 5);
        assert_eq!((room.start, room.len()), (0, SHARED + 5));
        assert_eq!(room.last(), Some(&0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_room_that_goes_gives_its_pages_back_while_others_stay() {
        let mut rooms = [(); 3].map(|()| Room::new(3 << 20));
        rooms.iter_mut().for_each(|room| room.fill(7));
        let [before, gone, after] = rooms;
        let (buffer, start) = (Arc::clone(&gone.buffer), gone.start);
        drop(gone);
        // SAFETY: the buffer is there, and nobody writes to this part of it.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.first.add(start), 3 << 20) };
        let whole_pages = &bytes[PAGE..bytes.len() - PAGE];
        assert!(whole_pages.iter().all(|&byte| byte == 0));
        assert!(before.iter().chain(after.iter()).all(|&byte| byte == 7));
    }
}
