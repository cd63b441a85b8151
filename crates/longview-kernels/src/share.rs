//! Sharing a mutable slice between the pool's tasks, each element with exactly one of them.

use crate::pool::Pool;

impl Pool {
    /// Calls `work(index, &mut item, worker)` once for every element, shared between the threads.
    pub fn for_each<T: Send>(&self, items: &mut [T], work: impl Fn(usize, &mut T, usize) + Sync) {
        let start = SharedStart(items.as_mut_ptr());
        self.run(items.len(), &|index, worker| {
            // SAFETY: `run` calls each index in 0..items.len() exactly once, so no two tasks hold
            // the same element, and `items` stays borrowed until `run` returns.
            let item = unsafe { &mut *start.get().add(index) };
            work(index, item, worker);
        });
    }

    /// Calls `work(chunk_index, chunk, worker)` for consecutive chunks of `chunk_len` elements
    /// (the last may be shorter), shared between the threads.
    pub fn for_each_chunk<T: Send>(
        &self,
        items: &mut [T],
        chunk_len: usize,
        work: impl Fn(usize, &mut [T], usize) + Sync,
    ) {
        let (len, chunk_len) = (items.len(), chunk_len.max(1));
        let start = SharedStart(items.as_mut_ptr());
        self.run(len.div_ceil(chunk_len), &|index, worker| {
            let first = index * chunk_len;
            let count = chunk_len.min(len - first);
            // SAFETY: chunks are disjoint ranges inside `items`, each index is called once, and
            // `items` stays borrowed until `run` returns.
            let chunk = unsafe { std::slice::from_raw_parts_mut(start.get().add(first), count) };
            work(index, chunk, worker);
        });
    }
}

/// The first element of a slice that several threads write, each its own part.
struct SharedStart<T>(*mut T);

impl<T> SharedStart<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: only used above, where every thread touches elements of its own.
unsafe impl<T: Send> Sync for SharedStart<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_visited_once_whatever_the_threads() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads);
            let mut items = vec![0usize; 101];
            pool.for_each(&mut items, |index, item, worker| {
                assert!(worker < threads);
                *item += index + 1;
            });
            assert!(
                items
                    .iter()
                    .enumerate()
                    .all(|(index, &item)| item == index + 1)
            );
            pool.for_each_chunk(&mut items, 7, |chunk, part, _| {
                part.iter_mut().for_each(|item| *item = chunk);
            });
            assert!(
                items
                    .iter()
                    .enumerate()
                    .all(|(index, &item)| item == index / 7)
            );
        }
    }
}
