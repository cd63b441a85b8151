//! Earlier versions of a text: what a store holds that has much in common with it, wherever both part.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::BLOCK_TOKENS;
use crate::context::{Context, Home};
use crate::hash::BlockHash;

/// Tokens in a row by which texts are compared.
const GRAM: usize = 8;

/// A stored block that may be part of an earlier version.
struct Node {
    parent: BlockHash,
    index: u32,
    tokens: Arc<[u32]>,
    /// Tokens that it and those before it have in common with the text.
    common: usize,
}

impl Context {
    /// The text in this context's store, of its model and tenant, that has most in common with `tokens`, as
    /// far as it has: whole blocks from the start on, as they were read. It may begin otherwise. Empty when
    /// nothing is stored that does, and without a store.
    ///
    /// Looks at every block that the store knows.
    pub fn earlier_version(&self, tokens: &[u32]) -> Vec<u32> {
        let grams: HashSet<&[u32]> = tokens.windows(GRAM).collect();
        let Some(home) = self.home.as_ref().filter(|_| !grams.is_empty()) else {
            return Vec::new();
        };
        let mut nodes = stored(home);
        let mut order: Vec<BlockHash> = nodes.keys().copied().collect();
        order.sort_unstable_by_key(|hash| (nodes[hash].index, *hash));
        let mut best: Option<(usize, BlockHash)> = None;
        for hash in order {
            let node = &nodes[&hash];
            let before = match nodes.get(&node.parent) {
                _ if node.index == 0 => 0,
                Some(parent) if parent.index + 1 == node.index => parent.common,
                // What it follows is not stored any more.
                _ => {
                    nodes.remove(&hash);
                    continue;
                }
            };
            let own = node
                .tokens
                .windows(GRAM)
                .filter(|gram| grams.contains(gram))
                .count();
            let common = before + own;
            // Of equals the shorter, which came first.
            if own > 0 && best.is_none_or(|(most, _)| common > most) {
                best = Some((common, hash));
            }
            if let Some(node) = nodes.get_mut(&hash) {
                node.common = common;
            }
        }
        let mut blocks = Vec::new();
        let mut next = best.map(|(_, hash)| hash);
        while let Some(node) = next.and_then(|hash| nodes.get(&hash)) {
            blocks.push(&node.tokens);
            next = (node.index > 0).then_some(node.parent);
        }
        blocks
            .into_iter()
            .rev()
            .flat_map(|block| block.iter().copied())
            .collect()
    }
}

/// The stored blocks that hold what their tokens say, by their hashes.
fn stored(home: &Home) -> HashMap<BlockHash, Node> {
    let mut nodes = HashMap::new();
    home.store.for_each(&mut |info| {
        let first_of_others = info.index == 0 && info.parent != home.origin.seed;
        let is_known = || nodes.contains_key(&info.key.hash);
        // Moved text has names of its own.
        let is_exact = || info.parent.then(&info.tokens) == info.key.hash;
        let is_one = info.key.group == 0
            && info.origin.seed == home.origin.seed
            && info.tokens.len() == BLOCK_TOKENS
            && !first_of_others;
        if is_one && !is_known() && is_exact() {
            let node = Node {
                parent: info.parent,
                index: info.index,
                tokens: Arc::clone(&info.tokens),
                common: 0,
            };
            nodes.insert(info.key.hash, node);
        }
    });
    nodes
}
