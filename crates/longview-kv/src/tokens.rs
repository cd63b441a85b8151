//! The token ids of a context.

use std::fmt;
use std::ops::Range;

use crate::shared::SharedList;

/// Ids are kept in pieces of so many, which forks share.
pub(crate) const PIECE: usize = 1024;

/// The ids of the tokens that a context has read, in order.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    list: &'a SharedList<u32, PIECE>,
}

impl<'a> Tokens<'a> {
    pub(crate) fn of(list: &'a SharedList<u32, PIECE>) -> Tokens<'a> {
        Tokens { list }
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One after another.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.list.iter_from(0).copied()
    }

    /// All of them in one piece.
    pub fn to_vec(&self) -> Vec<u32> {
        self.range(0..self.len())
    }

    /// Those in `range` in one piece.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn range(&self, range: Range<usize>) -> Vec<u32> {
        self.list.to_vec(range)
    }

    /// How many of `ids` they begin with.
    pub fn common_prefix(&self, ids: &[u32]) -> usize {
        let mut same = 0;
        for piece in self.list.pieces(0..self.len()) {
            let pairs = piece.iter().zip(&ids[same..]);
            let here = pairs.take_while(|(held, wanted)| held == wanted).count();
            same += here;
            if here < piece.len() {
                break;
            }
        }
        same
    }
}

impl fmt::Debug for Tokens<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq<[u32]> for Tokens<'_> {
    fn eq(&self, ids: &[u32]) -> bool {
        self.len() == ids.len() && self.common_prefix(ids) == ids.len()
    }
}

impl PartialEq<&[u32]> for Tokens<'_> {
    fn eq(&self, ids: &&[u32]) -> bool {
        *self == **ids
    }
}

impl PartialEq<Vec<u32>> for Tokens<'_> {
    fn eq(&self, ids: &Vec<u32>) -> bool {
        *self == **ids
    }
}
