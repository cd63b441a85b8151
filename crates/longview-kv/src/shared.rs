//! Lists that forks share up to where they part.
//!
//! What is settled lies in leaves that never change, below a tree of which every fork has the root: to
//! fork costs one count, whatever the length. What may still change is in a short private tail. A
//! list that grows or is cut after a fork copies the nodes on the way to its end, one a level.

use std::ops::Range;
use std::sync::Arc;

/// Children of an inner node, as a power of two.
const WIDTH_BITS: u32 = 5;

/// A list whose settled part is shared with its clones, in leaves of `LEAF` entries.
#[derive(Clone)]
pub(crate) struct SharedList<T, const LEAF: usize> {
    settled: Tree<T>,
    tail: Vec<T>,
}

/// Leaves in order. All but the last node of a level are full.
#[derive(Clone)]
struct Tree<T> {
    root: Option<Node<T>>,
    /// Levels of inner nodes above the leaves.
    height: u32,
    leaves: usize,
}

#[derive(Clone)]
enum Node<T> {
    Leaf(Arc<[T]>),
    Inner(Arc<Vec<Node<T>>>),
}

impl<T, const LEAF: usize> Default for SharedList<T, LEAF> {
    fn default() -> SharedList<T, LEAF> {
        SharedList {
            settled: Tree {
                root: None,
                height: 0,
                leaves: 0,
            },
            tail: Vec::new(),
        }
    }
}

impl<T: Clone, const LEAF: usize> SharedList<T, LEAF> {
    pub(crate) fn len(&self) -> usize {
        self.settled_len() + self.tail.len()
    }

    pub(crate) fn get(&self, at: usize) -> Option<&T> {
        match at.checked_sub(self.settled_len()) {
            Some(at) => self.tail.get(at),
            None => Some(&self.settled.leaf(at / LEAF)[at % LEAF]),
        }
    }

    /// The entries `range`, which must be there, in pieces.
    pub(crate) fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = &[T]> {
        let settled = self.settled_len();
        let leaves = range.start / LEAF..range.end.min(settled).div_ceil(LEAF);
        let (start, end) = (range.start, range.end);
        let of_leaf = move |leaf: usize| {
            let first = leaf * LEAF;
            let within = start.saturating_sub(first)..(end - first).min(LEAF);
            &self.settled.leaf(leaf)[within]
        };
        let in_tail = start.max(settled) - settled..end.max(settled) - settled;
        let tail = Some(&self.tail[in_tail]).filter(|tail| !tail.is_empty());
        leaves.map(of_leaf).chain(tail)
    }

    /// The entries from `from` on.
    pub(crate) fn iter_from(&self, from: usize) -> impl Iterator<Item = &T> {
        self.pieces(from.min(self.len())..self.len()).flatten()
    }

    pub(crate) fn to_vec(&self, range: Range<usize>) -> Vec<T> {
        let mut all = Vec::with_capacity(range.len());
        self.pieces(range)
            .for_each(|piece| all.extend_from_slice(piece));
        all
    }

    pub(crate) fn push(&mut self, entry: T) {
        self.tail.push(entry);
    }

    pub(crate) fn extend(&mut self, entries: impl IntoIterator<Item = T>) {
        self.tail.extend(entries);
    }

    /// Shares whole leaves of the first `most` entries with forks to come: they will hardly change.
    pub(crate) fn settle(&mut self, most: usize) {
        let ready = most.min(self.len()).saturating_sub(self.settled_len()) / LEAF * LEAF;
        if ready == 0 {
            return;
        }
        let rest = self.tail.split_off(ready);
        let mut leaves = std::mem::replace(&mut self.tail, rest).into_iter();
        while !leaves.as_slice().is_empty() {
            self.settled.push(leaves.by_ref().take(LEAF).collect());
        }
    }

    /// The entries from `from` on, to be changed; they are private from now on.
    pub(crate) fn private(&mut self, from: usize) -> &mut [T] {
        let mut leaves = Vec::new();
        while self.settled_len() > from {
            leaves.extend(self.settled.pop());
        }
        let entries = leaves.iter().rev().flat_map(|leaf| leaf.iter().cloned());
        self.tail.splice(..0, entries);
        let start = from - self.settled_len();
        &mut self.tail[start..]
    }

    /// Takes the first `count` entries, which must be there. What is left is private from now on.
    pub(crate) fn take_front(&mut self, count: usize) -> impl Iterator<Item = T> {
        if count > 0 {
            self.private(0);
        }
        self.tail.drain(..count)
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        while self.settled_len() > len {
            self.tail.clear();
            if let Some(leaf) = self.settled.pop() {
                let kept = len.saturating_sub(self.settled_len()).min(LEAF);
                self.tail.extend_from_slice(&leaf[..kept]);
            }
        }
        self.tail.truncate(len - self.settled_len());
    }

    fn settled_len(&self) -> usize {
        self.settled.leaves * LEAF
    }
}

impl<T: Clone> Tree<T> {
    fn leaf(&self, index: usize) -> &[T] {
        let mut node = self.root.as_ref().expect("a leaf that is there has a root");
        let mut height = self.height;
        loop {
            match node {
                Node::Leaf(entries) => return entries,
                Node::Inner(children) => {
                    height -= 1;
                    node = &children[child(index, height)];
                }
            }
        }
    }

    fn push(&mut self, leaf: Arc<[T]>) {
        match &mut self.root {
            None => self.root = Some(Node::Leaf(leaf)),
            Some(root) => {
                if self.leaves == 1 << (WIDTH_BITS * self.height) {
                    *root = Node::Inner(Arc::new(vec![root.clone()]));
                    self.height += 1;
                }
                root.push(self.height, self.leaves, leaf);
            }
        }
        self.leaves += 1;
    }

    fn pop(&mut self) -> Option<Arc<[T]>> {
        let leaf = self.root.as_mut()?.pop();
        self.leaves -= 1;
        if self.leaves == 0 {
            self.root = None;
        }
        while self.height > 0 && self.leaves <= 1 << (WIDTH_BITS * (self.height - 1)) {
            if let Some(Node::Inner(children)) = &self.root {
                self.root = children.first().cloned();
            }
            self.height -= 1;
        }
        Some(leaf)
    }
}

/// Which child of a node leads to leaf `index`, where each child has `height` levels of inner nodes.
fn child(index: usize, height: u32) -> usize {
    (index >> (WIDTH_BITS * height)) & ((1 << WIDTH_BITS) - 1)
}

impl<T: Clone> Node<T> {
    /// Adds leaf `index` below a node that has `height` levels.
    fn push(&mut self, height: u32, index: usize, leaf: Arc<[T]>) {
        let Node::Inner(children) = self else {
            unreachable!("a node with room for a leaf is an inner one")
        };
        let children = Arc::make_mut(children);
        match children.get_mut(child(index, height - 1)) {
            Some(node) => node.push(height - 1, index, leaf),
            None => {
                let above = |node, _| Node::Inner(Arc::new(vec![node]));
                children.push((1..height).fold(Node::Leaf(leaf), above));
            }
        }
    }

    /// Takes the last leaf; nodes left without any go, but for this one.
    fn pop(&mut self) -> Arc<[T]> {
        match self {
            Node::Leaf(entries) => Arc::clone(entries),
            Node::Inner(children) => {
                let children = Arc::make_mut(children);
                let last = children.last_mut().expect("no node is without children");
                let leaf = last.pop();
                if last.is_empty() {
                    children.pop();
                }
                leaf
            }
        }
    }

    /// Whether nothing is left of it after [`Node::pop`].
    fn is_empty(&self) -> bool {
        match self {
            Node::Leaf(_) => true,
            Node::Inner(children) => children.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEAF: usize = 4;

    #[derive(Clone, Debug)]
    enum Operation {
        Extend(usize),
        Settle(usize),
        Truncate(usize),
        Change(usize),
        TakeFront(usize),
        Fork,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            5 => (0usize..700).prop_map(Operation::Extend),
            3 => (0usize..5000).prop_map(Operation::Settle),
            3 => (0usize..5000).prop_map(Operation::Truncate),
            2 => (0usize..5000).prop_map(Operation::Change),
            1 => (0usize..100).prop_map(Operation::TakeFront),
            2 => Just(Operation::Fork),
        ]
    }

    fn check(list: &SharedList<usize, LEAF>, model: &[usize]) {
        assert_eq!(list.len(), model.len());
        assert!(list.iter_from(0).eq(model));
        assert_eq!(list.get(model.len()), None);
        for at in [0, model.len() / 3, model.len().saturating_sub(1)] {
            assert_eq!(list.get(at), model.get(at));
            let end = model.len().min(at + 2 * LEAF + 1);
            assert_eq!(list.to_vec(at..end), &model[at..end]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn lists_follow_vectors_and_forks_do_not_disturb_each_other(
            operations in prop::collection::vec((0usize..5, operation()), 1..40),
        ) {
            let mut lists = vec![(SharedList::<usize, LEAF>::default(), Vec::new())];
            for (step, (chosen, operation)) in operations.into_iter().enumerate() {
                let chosen = chosen % lists.len();
                let (list, model) = &mut lists[chosen];
                match operation {
                    Operation::Extend(count) => {
                        let new = (0..count).map(|at| step * 1000 + at);
                        list.extend(new.clone());
                        model.extend(new);
                    }
                    Operation::Settle(most) => list.settle(most),
                    Operation::Truncate(len) => {
                        list.truncate(len);
                        model.truncate(len);
                    }
                    Operation::Change(from) => {
                        let from = from.min(model.len());
                        for (a, b) in list.private(from).iter_mut().zip(&mut model[from..]) {
                            *a += 7;
                            *b += 7;
                        }
                    }
                    Operation::TakeFront(count) => {
                        let count = count.min(model.len());
                        let first: Vec<usize> = model.drain(..count).collect();
                        prop_assert!(list.take_front(count).eq(first));
                    }
                    Operation::Fork => {
                        let fork = (list.clone(), model.clone());
                        lists.push(fork);
                        if lists.len() > 4 {
                            lists.remove(0);
                        }
                    }
                }
                lists.iter().for_each(|(list, model)| check(list, model));
            }
        }
    }
}
