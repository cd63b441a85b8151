//! The disk reads what is packed next while the processors pack.

use longview_weights::{Tensor, WeightFile};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that are asked for ahead of their use. They lie in the system's cache and not in the process, so they
/// count against no limit of memory.
const AHEAD: u64 = 128 << 20;

/// Bytes that are asked for before looking again how far packing is.
const PIECE: usize = 1 << 20;

/// A thread's work of asking the disk for tensors in the order of the file, some way ahead of those that are packed.
///
/// Tensors may be packed in any order: asking goes on from the one that was reached last.
pub(crate) struct Ahead<'a> {
    file: &'a WeightFile,
    pieces: Vec<Piece<'a>>,
    /// The first piece of each tensor.
    first: HashMap<&'a str, usize>,
    state: Mutex<State>,
    changed: Condvar,
}

/// Some bytes of a tensor.
struct Piece<'a> {
    tensor: &'a str,
    bytes: Range<usize>,
    /// Bytes of all pieces before this one.
    before: u64,
}

struct State {
    /// For each piece, whether the disk was asked for it.
    asked: Vec<bool>,
    /// The piece that is packed.
    at: usize,
    is_over: bool,
}

/// Ends the thread's work when it is dropped, however loading ended.
pub(crate) struct UntilDropped<'a, 'f>(&'a Ahead<'f>);

impl<'a> Ahead<'a> {
    /// For `tensors` of `file`, in its order.
    pub(crate) fn new(file: &'a WeightFile, tensors: impl Iterator<Item = Tensor<'a>>) -> Self {
        let (mut pieces, mut first, mut before) = (Vec::new(), HashMap::new(), 0);
        for tensor in tensors {
            first.insert(tensor.name, pieces.len());
            for start in (0..tensor.data.len()).step_by(PIECE) {
                let end = tensor.data.len().min(start + PIECE);
                pieces.push(Piece {
                    tensor: tensor.name,
                    bytes: start..end,
                    before,
                });
                before += (end - start) as u64;
            }
        }
        let state = State {
            asked: vec![false; pieces.len()],
            at: 0,
            is_over: false,
        };
        Ahead {
            file,
            pieces,
            first,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Says that byte `byte` of a tensor is the next to be packed.
    pub(crate) fn reached(&self, tensor: &str, byte: usize) {
        if let Some(first) = self.first.get(tensor) {
            self.state().at = first + byte / PIECE;
            self.changed.notify_one();
        }
    }

    /// The thread's work, until the result of [`Ahead::until_dropped`] is dropped.
    pub(crate) fn run(&self) {
        let mut state = self.state();
        while !state.is_over {
            match self.next(&state) {
                Some(next) => {
                    state.asked[next] = true;
                    drop(state);
                    let piece = &self.pieces[next];
                    self.file.read_ahead(piece.tensor, piece.bytes.clone());
                    state = self.state();
                }
                None => {
                    let waited = self.changed.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// What ends [`Ahead::run`].
    pub(crate) fn until_dropped(&self) -> UntilDropped<'_, 'a> {
        UntilDropped(self)
    }

    /// The next piece to ask for.
    fn next(&self, state: &State) -> Option<usize> {
        let end = self.pieces.get(state.at)?.before + AHEAD;
        (state.at..self.pieces.len())
            .take_while(|&piece| self.pieces[piece].before < end)
            .find(|&piece| !state.asked[piece])
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UntilDropped<'_, '_> {
    fn drop(&mut self) {
        self.0.state().is_over = true;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longview_kernels::Format;
    use longview_weights::GgufHeader;

    fn three_tensors(folder: &std::path::Path) -> WeightFile {
        let path = folder.join("m.gguf");
        let mut header = GgufHeader::new();
        let sizes = [("a", PIECE + 4), ("b", 64), ("c", 2 * PIECE)];
        for (name, bytes) in sizes {
            let shape = [bytes / 4];
            header.tensor(name, Format::F32, &shape).unwrap();
        }
        let mut writer = header.create(&path).unwrap();
        for (name, bytes) in sizes {
            writer.append(name, &vec![1; bytes]).unwrap();
        }
        writer.finish().unwrap();
        WeightFile::open(&path).unwrap()
    }

    #[test]
    fn pieces_are_asked_for_once_from_the_one_that_was_reached() {
        let folder = tempfile::tempdir().unwrap();
        let file = three_tensors(folder.path());
        let ahead = Ahead::new(&file, file.tensors());
        let asked = || {
            let mut state = ahead.state();
            let next = ahead.next(&state)?;
            state.asked[next] = true;
            let Piece { tensor, bytes, .. } = &ahead.pieces[next];
            Some((*tensor, bytes.start / PIECE, bytes.len()))
        };
        assert_eq!(asked(), Some(("a", 0, PIECE)));
        ahead.reached("c", PIECE);
        assert_eq!(asked(), Some(("c", 1, PIECE)));
        assert_eq!(asked(), None, "what was passed over is not asked for");
        ahead.reached("not there", 0);
        ahead.reached("a", 7);
        assert_eq!(asked(), Some(("a", 1, 4)));
        assert_eq!(asked(), Some(("b", 0, 64)));
        assert_eq!(asked(), Some(("c", 0, PIECE)));
        assert_eq!(asked(), None);
        ahead.reached("c", 2 * PIECE);
        assert_eq!(asked(), None, "the end of the file");
    }

    #[test]
    fn the_thread_ends_with_the_load() {
        let folder = tempfile::tempdir().unwrap();
        let file = three_tensors(folder.path());
        let ahead = Ahead::new(&file, file.tensors());
        std::thread::scope(|scope| {
            let _ends = ahead.until_dropped();
            scope.spawn(|| ahead.run());
            while ahead.state().asked.contains(&false) {
                std::thread::yield_now();
            }
        });
    }
}
