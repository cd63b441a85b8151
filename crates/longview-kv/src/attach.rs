//! Contexts found by content: the longest prefix of a prompt that a store holds.

use std::sync::Arc;

use crate::BLOCK_TOKENS;
use crate::context::{Context, Home, first_visible};
use crate::error::KvError;
use crate::hash::BlockHash;
use crate::layout::{Group, LayerState};
use crate::run::{Gap, Slot};
use crate::sealed::Handle;
use crate::tier::{BlockKey, Origin};

/// What a store has of a prompt, and where and why that ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// What holds each block that would be taken over, in order: `memory` or a tier's name.
    pub places: Vec<String>,
    /// Tokens that would be taken over.
    pub reused_tokens: usize,
    /// Why not more.
    pub end: ReuseEnd,
    /// Seconds that reading what is not in memory is expected to take.
    pub seconds_to_read: f64,
    /// Seconds that computing it took.
    pub seconds_to_compute: f64,
}

/// Why no more of a prompt is taken over.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ReuseEnd {
    /// What is left does not fill a block of 64 tokens.
    Tail,
    /// Nothing that was read goes on from here.
    NothingBeyond,
    /// What was read goes on otherwise.
    Differs {
        /// The first token, counted from the start of the prompt, that differs.
        token: usize,
        /// The stored tokens from there to the end of their block.
        stored: Vec<u32>,
    },
    /// Nothing begins like the prompt under this identity, but it does under these.
    OtherIdentity(Vec<Arc<Origin>>),
    /// More was read, but sliding-window or recurrent layers kept nothing to go on from there.
    NoCheckpoint {
        /// Tokens that layers with full attention have.
        full_tokens: usize,
    },
    /// More is stored, but reading it is expected to take longer than computing it.
    SlowToRead {
        /// Tokens that are stored.
        stored_tokens: usize,
    },
}

/// Blocks to take over: for every group its first block and the handles from there on.
struct Found {
    /// Blocks of the prompt covered, those held before included.
    blocks: usize,
    groups: Vec<(usize, Vec<Arc<Handle>>)>,
    /// Hashes of blocks `held..blocks`.
    hashes: Vec<BlockHash>,
    /// Blocks that full layers have.
    full_blocks: usize,
    /// Those of them that make the prefix whose reading saves most.
    worth_blocks: usize,
    seconds_to_read: f64,
    seconds_to_compute: f64,
}

impl Found {
    /// Whether reading it, windows and states included, is expected to take longer than computing it.
    fn is_slow(&self) -> bool {
        self.seconds_to_read > self.seconds_to_compute
    }
}

impl Context {
    /// Takes over what the store holds of `tokens` beyond what this context has read, as far as
    /// that is expected to be faster than computing it: the prefix that saves most. Returns the tokens
    /// held then.
    ///
    /// What is taken over is read when the next pass needs it, layer by layer.
    ///
    /// # Errors
    /// [`KvError::Parted`] when `tokens` do not begin with what the context holds.
    pub fn attach(&mut self, tokens: &[u32]) -> Result<usize, KvError> {
        if self.tokens().common_prefix(tokens) < self.len() {
            return Err(KvError::Parted);
        }
        let held = self.len() / BLOCK_TOKENS;
        let Some(home) = self.home.as_ref().filter(|_| self.is_exact()) else {
            return Ok(self.len());
        };
        let mut least_gone = usize::MAX;
        let (found, holds) = loop {
            let found = self.find(home, tokens);
            let is_more = found.blocks * BLOCK_TOKENS > self.len() && found.blocks < least_gone;
            if !is_more || found.is_slow() {
                return Ok(self.len());
            }
            let handles = found.groups.iter().flat_map(|(_, handles)| handles);
            let handles: Vec<Arc<Handle>> = handles.cloned().collect();
            match home.store.take_over(&handles) {
                Some(holds) => break (found, holds),
                // One was evicted meanwhile, and is known to be gone now: what is before it is left.
                None => least_gone = found.blocks,
            }
        };
        let groups = self.groups.iter_mut().zip(&mut self.states);
        for ((run, state), (first, handles)) in groups.zip(found.groups) {
            if let Some(state) = state {
                for handle in handles {
                    state.take_over(found.blocks * BLOCK_TOKENS, handle);
                }
                continue;
            }
            run.truncate(held);
            // A group of the first tokens may have all there are.
            if !handles.is_empty() {
                run.append(first, Gap::Dropped, handles.into_iter().map(Slot::Sealed));
            }
        }
        let new = &tokens[self.len()..found.blocks * BLOCK_TOKENS];
        self.tokens.extend(new.iter().copied());
        if let Some(home) = &mut self.home {
            home.chain.extend(found.hashes);
            home.holds.extend(holds.into_iter().map(Arc::new));
        }
        self.share_full();
        Ok(self.len())
    }

    /// What [`Context::attach`] would take over, and why not more.
    ///
    /// # Errors
    /// [`KvError::Parted`] when `tokens` do not begin with what the context holds.
    pub fn explain(&self, tokens: &[u32]) -> Result<Explanation, KvError> {
        if self.tokens().common_prefix(tokens) < self.len() {
            return Err(KvError::Parted);
        }
        let Some(home) = self.home.as_ref().filter(|_| self.is_exact()) else {
            return Ok(Explanation {
                places: Vec::new(),
                reused_tokens: self.len(),
                end: ReuseEnd::NothingBeyond,
                seconds_to_read: 0.0,
                seconds_to_compute: 0.0,
            });
        };
        let held = self.len() / BLOCK_TOKENS;
        let found = self.find(home, tokens);
        let usable = if found.is_slow() { held } else { found.blocks };
        let slow = found.is_slow() || found.worth_blocks < found.full_blocks;
        let mut chain = home.chain.to_vec(0..held);
        chain.extend(&found.hashes);
        let places = chain[..usable].iter().map(|&hash| {
            let place = home.store.place_of(&BlockKey { hash, group: 0 });
            place.unwrap_or("memory").to_owned()
        });
        let end = if slow {
            ReuseEnd::SlowToRead {
                stored_tokens: found.full_blocks * BLOCK_TOKENS,
            }
        } else if found.full_blocks > found.blocks {
            ReuseEnd::NoCheckpoint {
                full_tokens: found.full_blocks * BLOCK_TOKENS,
            }
        } else {
            let parent = chain.last().copied().unwrap_or(home.origin.seed);
            why_no_more(home, &parent, found.blocks, tokens)
        };
        Ok(Explanation {
            places: places.collect(),
            reused_tokens: (usable * BLOCK_TOKENS).max(self.len()),
            end,
            seconds_to_read: found.seconds_to_read,
            seconds_to_compute: found.seconds_to_compute,
        })
    }

    /// The longest continuation of this context towards `tokens` that every group can go on from.
    fn find(&self, home: &Home, tokens: &[u32]) -> Found {
        let held = self.len() / BLOCK_TOKENS;
        let groups = &self.layout.groups;
        let is_full = |group: &Group| group.kind.state == LayerState::Full;

        // Layers with full attention need every block.
        let mut hashes: Vec<BlockHash> = Vec::new();
        let mut full: Vec<Vec<Arc<Handle>>> = vec![Vec::new(); groups.len()];
        // Seconds saved by reading so far, and where most are.
        let (mut saved, mut most, mut worth) = (0.0, 0.0, 0);
        let mut parent = home.before(held);
        let blocks = tokens.chunks_exact(BLOCK_TOKENS).enumerate();
        for (index, block) in blocks.skip(held) {
            let hash = parent.then(block);
            let of_groups: Option<Vec<_>> = groups
                .iter()
                .enumerate()
                .filter(|(_, group)| is_full(group) && index < group.most_blocks)
                .map(|(place, _)| {
                    Some((
                        place,
                        home.store.find(&BlockKey {
                            hash,
                            group: place as u16,
                        })?,
                    ))
                })
                .collect();
            let Some(of_groups) = of_groups else {
                break;
            };
            // Every group notes the time of the whole block.
            saved += of_groups
                .first()
                .map_or(0.0, |(_, handle)| f64::from(handle.info().seconds));
            for (place, handle) in of_groups {
                saved -= home.store.seconds_to_read(&handle);
                full[place].push(handle);
            }
            hashes.push(hash);
            parent = hash;
            if saved >= most {
                (most, worth) = (saved, hashes.len());
            }
        }
        let (full_blocks, worth_blocks) = (held + hashes.len(), held + worth);

        // The others need what the next token sees: the longest prefix for which all have that.
        let mut blocks = worth_blocks;
        let windows = loop {
            match self.windows(home, &hashes, blocks) {
                Some(windows) => break windows,
                None => blocks -= 1,
            }
        };
        hashes.truncate(blocks - held);
        let taken: Vec<(usize, Vec<Arc<Handle>>)> = windows
            .into_iter()
            .zip(full)
            .zip(groups)
            .map(|((window, mut full), group)| {
                if is_full(group) {
                    full.truncate(blocks - held);
                    (held, full)
                } else {
                    window
                }
            })
            .collect();
        let handles = || taken.iter().flat_map(|(_, handles)| handles);
        // Every group notes the time of the whole block, so that of one group is enough.
        let of_one = taken
            .iter()
            .map(|(_, handles)| handles)
            .max_by_key(|handles| handles.len());
        let seconds = of_one
            .into_iter()
            .flatten()
            .map(|handle| handle.info().seconds);
        Found {
            blocks,
            full_blocks,
            worth_blocks,
            seconds_to_read: handles()
                .map(|handle| home.store.seconds_to_read(handle))
                .sum(),
            seconds_to_compute: seconds.map(f64::from).sum(),
            groups: taken,
            hashes,
        }
    }

    /// For every group with a window its blocks that the token after block `blocks` sees, beyond those
    /// held, and for every recurrent group its state there; `hashes` are those of the blocks after the ones held. `None` when one is missing.
    fn windows(
        &self,
        home: &Home,
        hashes: &[BlockHash],
        blocks: usize,
    ) -> Option<Vec<(usize, Vec<Arc<Handle>>)>> {
        let held = self.len() / BLOCK_TOKENS;
        let of_group = |(place, group): (usize, &Group)| {
            let needed = first_visible(group, blocks * BLOCK_TOKENS) / BLOCK_TOKENS;
            if group.kind.state == LayerState::Full || blocks == held {
                return Some((held, Vec::new()));
            }
            if group.is_recurrent() {
                let key = BlockKey {
                    hash: hashes[blocks - held - 1],
                    group: place as u16,
                };
                return Some((blocks, vec![home.store.find(&key)?]));
            }
            if needed < held && self.groups[place].first > needed {
                return None;
            }
            let first = needed.max(held);
            let handles = (first..blocks).map(|index| {
                home.store.find(&BlockKey {
                    hash: hashes[index - held],
                    group: place as u16,
                })
            });
            Some((first, handles.collect::<Option<Vec<_>>>()?))
        };
        self.layout
            .groups
            .iter()
            .enumerate()
            .map(of_group)
            .collect()
    }
}

/// Why block `index` of `tokens`, which would follow `parent`, is not held.
fn why_no_more(home: &Home, parent: &BlockHash, index: usize, tokens: &[u32]) -> ReuseEnd {
    let from = index * BLOCK_TOKENS;
    let wanted = &tokens[from..tokens.len().min(from + BLOCK_TOKENS)];
    let common = |stored: &[u32]| {
        stored
            .iter()
            .zip(wanted)
            .take_while(|(a, b)| a == b)
            .count()
    };
    let nearest = home
        .store
        .after(parent)
        .into_iter()
        .max_by_key(|info| common(&info.tokens));
    match nearest {
        Some(info) if common(&info.tokens) < wanted.len() => {
            let same = common(&info.tokens);
            return ReuseEnd::Differs {
                token: from + same,
                stored: info.tokens[same..].to_vec(),
            };
        }
        _ if wanted.len() < BLOCK_TOKENS => return ReuseEnd::Tail,
        _ => {}
    }
    if index == 0 {
        let mut others: Vec<Arc<Origin>> = Vec::new();
        for tier in home.store.tiers() {
            tier.for_each(&mut |info| {
                if info.index == 0 && *info.tokens == *wanted && !others.contains(&info.origin) {
                    others.push(Arc::clone(&info.origin));
                }
            });
        }
        others.retain(|origin| origin.seed != home.origin.seed);
        if !others.is_empty() {
            return ReuseEnd::OtherIdentity(others);
        }
    }
    ReuseEnd::NothingBeyond
}
