//! How a model's keys and values are laid out in blocks.

use longview_kernels::page::{KvType, PageGeometry};

use crate::BLOCK_TOKENS;
use crate::feed;
use crate::recurrent;

/// States that a context needs while it is written: the one that holds, and the one being made.
const PASS_STATES: usize = 2;

/// What a layer must keep to go on from where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerState {
    /// Every position attends to all positions before it.
    Full,
    /// Every position attends to the last `tokens` positions, its own included.
    Window {
        /// Length of the window in tokens.
        tokens: usize,
    },
    /// What was read is one state of a fixed size, which every token changes.
    Recurrent {
        /// Bytes of the state, whatever the numerics class: numbers in f32.
        bytes: usize,
    },
}

/// The keys and values one layer makes for one token, or the state it keeps instead of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerLayout {
    /// What the layer keeps.
    pub state: LayerState,
    /// KV heads.
    pub kv_heads: usize,
    /// Channels of a key.
    pub head_dim: usize,
    /// Channels of a value.
    pub v_dim: usize,
}

impl LayerLayout {
    /// A layer that keeps a state of `bytes` bytes instead of keys and values.
    pub fn recurrent(bytes: usize) -> LayerLayout {
        LayerLayout {
            state: LayerState::Recurrent { bytes },
            kv_heads: 0,
            head_dim: 0,
            v_dim: 0,
        }
    }
}

/// The layers of a model grouped by kind: layers of one group share their blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    pub(crate) groups: Vec<Group>,
    /// For each layer its group and its place inside the group's blocks.
    pub(crate) layers: Vec<(usize, usize)>,
    kv_type: KvType,
}

/// Layers of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) kind: LayerLayout,
    pub(crate) layers: usize,
    pub(crate) geometry: PageGeometry,
}

impl KvLayout {
    /// The layout of `layers`, first layer first, with keys and values stored as `kv_type`.
    pub fn new(layers: &[LayerLayout], kv_type: KvType) -> KvLayout {
        let mut layout = KvLayout {
            groups: Vec::new(),
            layers: Vec::new(),
            kv_type,
        };
        // Full layers first: their blocks are what every prompt is found by.
        let rank = |kind: &LayerLayout| match kind.state {
            LayerState::Full => 0,
            LayerState::Window { .. } => 1,
            LayerState::Recurrent { .. } => 2,
        };
        let mut kinds: Vec<LayerLayout> = Vec::new();
        for &kind in layers {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds.sort_by_key(rank);
        for &kind in &kinds {
            layout.groups.push(Group {
                kind,
                layers: 0,
                geometry: PageGeometry {
                    head_dim: kind.head_dim,
                    v_dim: kind.v_dim,
                    k_type: kv_type,
                    v_type: kv_type,
                },
            });
        }
        for kind in layers {
            let known = kinds.iter().position(|known| known == kind);
            let index = known.expect("every layer's kind was noted above");
            let group = &mut layout.groups[index];
            layout.layers.push((index, group.layers));
            group.layers += 1;
        }
        layout
    }

    /// The element type of stored keys and values.
    pub fn kv_type(&self) -> KvType {
        self.kv_type
    }

    /// Bytes of the keys and values that layer `layer` keeps of one token.
    pub fn token_bytes(&self, layer: usize) -> f64 {
        let group = &self.groups[self.layers[layer].0];
        (group.page_bytes() * group.kind.kv_heads) as f64 / BLOCK_TOKENS as f64
    }

    /// Bytes that a context of `tokens` tokens holds after being read in chunks of
    /// `chunk_tokens`, at the moment it holds most.
    pub fn context_bytes(&self, tokens: usize, chunk_tokens: usize) -> u64 {
        let all = tokens.div_ceil(BLOCK_TOKENS);
        let blocks = self.bytes_of(|window| {
            // A chunk may begin and the window may end inside a block: one more each.
            window.map_or(all, |window| {
                all.min((window + chunk_tokens).div_ceil(BLOCK_TOKENS) + 2)
            })
        });
        blocks + self.state_bytes(PASS_STATES + recurrent::most_checkpoints(tokens))
    }

    /// Bytes that a fork holds beside the context it came from while it is written: the last block
    /// of full layers, the window and the states of the others.
    pub fn fork_bytes(&self, chunk_tokens: usize) -> u64 {
        let blocks = self.bytes_of(|window| {
            window.map_or(1, |window| {
                (window + chunk_tokens).div_ceil(BLOCK_TOKENS) + 2
            })
        });
        blocks + self.state_bytes(PASS_STATES)
    }

    /// Whether some layers keep a state instead of keys and values.
    pub fn is_recurrent(&self) -> bool {
        self.groups.iter().any(Group::is_recurrent)
    }

    /// Bytes that must be in memory at once to read a context of any length in chunks of
    /// `chunk_tokens`, when the rest may be in a tier: the blocks of a chunk and of a fork's, windows
    /// whole, and the buffers that blocks are read back into.
    pub fn least_bytes(&self, chunk_tokens: usize) -> u64 {
        let chunk = chunk_tokens.div_ceil(BLOCK_TOKENS) + 2;
        let blocks = self.bytes_of(|window| chunk + window.map_or(0, |w| w.div_ceil(BLOCK_TOKENS)));
        blocks + self.fork_bytes(1) + feed::buffer_bytes(self)
    }

    /// Bytes of the blocks that `blocks` counts for a group, given the length of its window.
    fn bytes_of(&self, blocks: impl Fn(Option<usize>) -> usize) -> u64 {
        let of_group = |group: &Group| {
            let window = match group.kind.state {
                LayerState::Full => None,
                LayerState::Window { tokens } => Some(tokens),
                LayerState::Recurrent { .. } => return 0,
            };
            blocks(window) as u64 * group.block_bytes() as u64
        };
        self.groups.iter().map(of_group).sum()
    }

    /// Bytes of `count` states of all recurrent layers.
    fn state_bytes(&self, count: usize) -> u64 {
        let recurrent = self.groups.iter().filter(|group| group.is_recurrent());
        let one: u64 = recurrent.map(|group| group.block_bytes() as u64).sum();
        one * count as u64
    }
}

impl Group {
    /// Bytes of one page: keys, then values, of 64 tokens of one layer and KV head.
    pub(crate) fn page_bytes(&self) -> usize {
        self.geometry.k_bytes() + self.geometry.v_bytes()
    }

    /// Bytes of one layer in a block: the pages of all KV heads, or its state.
    pub(crate) fn layer_bytes(&self) -> usize {
        match self.kind.state {
            LayerState::Recurrent { bytes } => bytes,
            LayerState::Full | LayerState::Window { .. } => self.page_bytes() * self.kind.kv_heads,
        }
    }

    /// Bytes of one block: all layers, one after another.
    pub(crate) fn block_bytes(&self) -> usize {
        self.layer_bytes() * self.layers
    }

    pub(crate) fn is_recurrent(&self) -> bool {
        matches!(self.kind.state, LayerState::Recurrent { .. })
    }

    /// Where `layer` (its place in the group) begins in a block.
    pub(crate) fn layer_offset(&self, layer: usize) -> usize {
        layer * self.layer_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_one_kind_share_a_group_and_windows_stay_bounded() {
        let full = LayerLayout {
            state: LayerState::Full,
            kv_heads: 2,
            head_dim: 64,
            v_dim: 64,
        };
        let window = LayerLayout {
            state: LayerState::Window { tokens: 128 },
            ..full
        };
        let layout = KvLayout::new(&[full, window, full], KvType::F16);
        assert_eq!(layout.layers, [(0, 0), (1, 0), (0, 1)]);
        assert_eq!(layout.groups.len(), 2);
        // 2 layers × 2 heads × 64 tokens × (64 + 64) channels × 2 bytes.
        assert_eq!(layout.groups[0].block_bytes(), 65_536);
        assert_eq!(layout.groups[0].layer_offset(1), 32_768);
        assert_eq!(layout.context_bytes(64, 64), 65_536 + 32_768);
        let growth = layout.context_bytes(64_000, 64) - layout.context_bytes(32_000, 64);
        assert_eq!(growth, 500 * 65_536, "only full layers grow");
    }
}
