//! How a model's keys and values are laid out in blocks.

use longview_kernels::page::{KvType, PageGeometry};

use crate::BLOCK_TOKENS;
use crate::feed;
use crate::forms::{KvForm, KvForms};
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
    forms: KvForms,
}

/// Layers of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) kind: LayerLayout,
    pub(crate) layers: usize,
    pub(crate) geometry: PageGeometry,
    /// Where the latest tokens are, if this group holds the older ones alone.
    pub(crate) recent: Option<Recent>,
    /// The most blocks it has, from the first on: where it holds the first tokens of others.
    pub(crate) most_blocks: usize,
    /// Whether it holds some tokens of layers whose others are elsewhere.
    pub(crate) is_beside: bool,
}

/// The group with the latest tokens of the same layers, at the same places, as they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recent {
    pub(crate) group: usize,
    /// Tokens that are read there at least, the row's own included.
    pub(crate) tokens: usize,
    /// The group with the first tokens as they were written, where some are kept.
    pub(crate) sinks: Option<usize>,
}

impl Recent {
    /// The first slot that the row in `slot` reads in the recent group; before it, it reads what is
    /// made of filled pages. It follows from the slot alone, so a row reads the same whatever is computed with it.
    pub(crate) fn first_slot(&self, slot: usize) -> usize {
        let edge = (slot + 1).saturating_sub(self.tokens);
        edge - edge % BLOCK_TOKENS
    }
}

/// What layers of one group have in common.
#[derive(Clone, Copy, PartialEq)]
struct Kind {
    layer: LayerLayout,
    k_type: KvType,
    v_type: KvType,
    role: Role,
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    /// All that a layer keeps.
    Alone,
    /// The older tokens of a layer, in pages made of filled ones, with the others elsewhere.
    Older(KvForm),
    /// The latest tokens of such a layer.
    Recent(KvForm),
    /// The first tokens of such a layer.
    Sinks(KvForm),
}

/// The kinds of one layer.
struct Kinds {
    /// Of all its tokens, or of the older ones.
    layer: Kind,
    recent: Option<Kind>,
    sinks: Option<Kind>,
}

impl KvLayout {
    /// The layout of `layers`, first layer first, with keys and values stored in `forms`. Layers with
    /// a sliding window keep half precision where their form is made of whole pages: what they hold
    /// is recent. So nothing of them is held apart either.
    pub fn new(layers: &[LayerLayout], forms: impl Into<KvForms>) -> KvLayout {
        let forms = forms.into();
        let kinds_of = |layer: usize| kinds(&layers[layer], &forms, layer);
        // Full layers first: their blocks are what every prompt is found by.
        let rank = |kind: &Kind| match (kind.layer.state, kind.role) {
            (_, Role::Sinks(_)) => 3,
            (LayerState::Full, _) => 0,
            (LayerState::Window { .. }, _) => 1,
            (LayerState::Recurrent { .. }, _) => 2,
        };
        let mut kinds: Vec<Kind> = Vec::new();
        for layer in 0..layers.len() {
            let Kinds {
                layer,
                recent,
                sinks,
            } = kinds_of(layer);
            for kind in [Some(layer), recent, sinks].into_iter().flatten() {
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
        }
        kinds.sort_by_key(rank);
        let index = |kind: Kind| {
            let known = kinds.iter().position(|known| *known == kind);
            known.expect("every layer's kind was noted above")
        };
        let mut layout = KvLayout {
            groups: kinds.iter().map(Group::new).collect(),
            layers: Vec::new(),
            forms,
        };
        for layer in 0..layers.len() {
            let Kinds {
                layer: kind,
                recent,
                sinks,
            } = kinds_of(layer);
            let group = index(kind);
            layout.layers.push((group, layout.groups[group].layers));
            layout.groups[group].layers += 1;
            let Some(recent) = recent else { continue };
            let (group_of_recent, sinks) = (index(recent), sinks.map(index));
            for beside in std::iter::once(group_of_recent).chain(sinks) {
                layout.groups[beside].layers += 1;
            }
            layout.groups[group].recent = Some(Recent {
                group: group_of_recent,
                tokens: recent_tokens(&forms.of(layer)),
                sinks,
            });
        }
        layout
    }

    /// How keys and values are stored.
    pub fn forms(&self) -> &KvForms {
        &self.forms
    }

    /// How keys of layers without a form of their own are stored.
    pub fn kv_type(&self) -> KvType {
        self.forms.form().k
    }

    /// The first token of a context of `len` tokens that a keep method leaves in blocks: all before it may
    /// move to streams. That is behind the last one, unless the latest are held apart from the others.
    pub(crate) fn keep_edge(&self, len: usize) -> usize {
        let of_group = |group: &Group| group.recent.map(|recent| recent.first_slot(len));
        self.groups.iter().filter_map(of_group).min().unwrap_or(len)
    }

    /// The most tokens that stay in blocks, whatever a keep method says.
    pub(crate) fn keep_tail(&self) -> usize {
        let of_group = |group: &Group| Some(group.recent?.tokens - 1 + BLOCK_TOKENS - 1);
        self.groups.iter().filter_map(of_group).max().unwrap_or(0)
    }

    /// The first tokens of layers of group `place` that are held apart from the others, as they were written.
    pub(crate) fn apart_of(&self, place: usize) -> usize {
        let recent = self.groups[place].recent;
        let sinks = recent.and_then(|recent| recent.sinks);
        sinks.map_or(0, |sinks| self.groups[sinks].most_blocks * BLOCK_TOKENS)
    }

    /// The most of them of any layer.
    pub(crate) fn apart(&self) -> usize {
        let groups = 0..self.groups.len();
        groups.map(|place| self.apart_of(place)).max().unwrap_or(0)
    }

    /// Bytes of the blocks that hold them, and the latest tokens where those are held apart.
    pub(crate) fn apart_bytes(&self) -> u64 {
        let of_group = |group: &Group| match group.kind.state {
            LayerState::Full if group.is_of_sinks() => group.most_blocks,
            LayerState::Window { tokens } if group.is_beside => window_blocks(tokens),
            _ => 0,
        };
        let groups = self.groups.iter();
        groups
            .map(|group| (of_group(group) * group.block_bytes()) as u64)
            .sum()
    }

    /// Bytes of the windows of a context of `tokens` tokens, the latest ones that are held apart among them: after
    /// it was read in chunks of `chunk_tokens`, or when nothing more than they need is held.
    pub(crate) fn window_bytes(&self, tokens: usize, chunk_tokens: Option<usize>) -> u64 {
        let all = tokens.div_ceil(BLOCK_TOKENS);
        let of_window = |window| match chunk_tokens {
            Some(chunk_tokens) => written_blocks(window, chunk_tokens),
            None => window_blocks(window),
        };
        self.bytes_of(|window| window.map_or(0, |window| all.min(of_window(window))))
    }

    /// Why no keep method can act on its layers, if so.
    pub(crate) fn refuses_keep(&self) -> Option<&'static str> {
        for group in &self.groups {
            if group.recent.is_some() && group.kind.state != LayerState::Full {
                return Some(
                    "the form of the store forgets what is behind its window already (accllm); choose \
                     one of the two",
                );
            }
        }
        None
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
            window.map_or(all, |window| all.min(written_blocks(window, chunk_tokens)))
        });
        blocks + self.state_bytes(PASS_STATES + recurrent::most_checkpoints(tokens))
    }

    /// Bytes that a fork holds beside the context it came from while it is written: the last block
    /// of full layers, the window and the states of the others.
    pub fn fork_bytes(&self, chunk_tokens: usize) -> u64 {
        let blocks =
            self.bytes_of(|window| window.map_or(1, |window| written_blocks(window, chunk_tokens)));
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

    /// Bytes of the blocks of layers with full attention that `tokens` tokens fill: all of them are read
    /// in every pass over later tokens, from memory or from below.
    pub fn filled_bytes(&self, tokens: usize) -> u64 {
        let blocks = tokens / BLOCK_TOKENS;
        let groups = self.groups.iter();
        let full = groups.filter(|group| group.kind.state == LayerState::Full);
        full.map(|group| (blocks.min(group.most_blocks) * group.block_bytes()) as u64)
            .sum()
    }

    /// Bytes of keys, values and states that a pass over `chunk_tokens` tokens cannot do without, deep in a
    /// context: those that it writes, windows, and the buffers that other blocks are read back into.
    pub fn pass_bytes(&self, chunk_tokens: usize) -> u64 {
        let chunk = chunk_tokens.div_ceil(BLOCK_TOKENS);
        let blocks = self.bytes_of(|window| chunk + window.map_or(0, |w| w / BLOCK_TOKENS));
        blocks + self.state_bytes(PASS_STATES) + feed::buffer_bytes(self)
    }

    /// Bytes of the blocks that `blocks` counts for a group, given the length of its window.
    fn bytes_of(&self, blocks: impl Fn(Option<usize>) -> usize) -> u64 {
        let of_group = |group: &Group| {
            let window = match group.kind.state {
                LayerState::Full => None,
                LayerState::Window { tokens } => Some(tokens),
                LayerState::Recurrent { .. } => return 0,
            };
            blocks(window).min(group.most_blocks) as u64 * group.block_bytes() as u64
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

/// Blocks that a window of `tokens` tokens takes at most while `chunk_tokens` more are read: these may begin and it
/// may end inside a block.
fn written_blocks(tokens: usize, chunk_tokens: usize) -> usize {
    (tokens + chunk_tokens).div_ceil(BLOCK_TOKENS) + 2
}

/// Blocks that a window of `tokens` tokens takes at most between passes: what the token after the last full one
/// sees, and that which is being filled.
fn window_blocks(tokens: usize) -> usize {
    (tokens - 1).div_ceil(BLOCK_TOKENS) + 1
}

/// Tokens that are read among the recent ones at least: a row's own is.
fn recent_tokens(form: &KvForm) -> usize {
    form.recent_tokens.max(1)
}

fn kinds(layer: &LayerLayout, forms: &KvForms, index: usize) -> Kinds {
    let form = forms.of(index);
    let kind = |state, k_type, v_type, role| Kind {
        layer: LayerLayout { state, ..*layer },
        k_type,
        v_type,
        role,
    };
    let half = |kv_type: KvType| {
        if kv_type.is_whole() {
            KvType::F16
        } else {
            kv_type
        }
    };
    let alone = |k_type, v_type| Kinds {
        layer: kind(layer.state, k_type, v_type, Role::Alone),
        recent: None,
        sinks: None,
    };
    match layer.state {
        LayerState::Full if form.is_split() => {
            // The block that is being filled is among the recent ones.
            let window = LayerState::Window {
                tokens: recent_tokens(&form) + BLOCK_TOKENS,
            };
            let older = match form.window_tokens {
                None => LayerState::Full,
                Some(tokens) => LayerState::Window {
                    tokens: tokens.max(recent_tokens(&form)),
                },
            };
            let beside = |state, role| kind(state, KvType::F16, KvType::F16, role);
            Kinds {
                layer: kind(older, form.k, form.v, Role::Older(form)),
                recent: Some(beside(window, Role::Recent(form))),
                sinks: (form.sink_tokens > 0).then(|| beside(LayerState::Full, Role::Sinks(form))),
            }
        }
        LayerState::Full | LayerState::Window { .. } => alone(half(form.k), half(form.v)),
        LayerState::Recurrent { .. } => alone(KvType::F32, KvType::F32),
    }
}

impl Group {
    /// A group without layers.
    fn new(kind: &Kind) -> Group {
        Group {
            kind: kind.layer,
            layers: 0,
            geometry: PageGeometry {
                head_dim: kind.layer.head_dim,
                v_dim: kind.layer.v_dim,
                k_type: kind.k_type,
                v_type: kind.v_type,
            },
            recent: None,
            most_blocks: match kind.role {
                Role::Sinks(form) => form.sink_tokens.div_ceil(BLOCK_TOKENS),
                _ => usize::MAX,
            },
            is_beside: matches!(kind.role, Role::Recent(_) | Role::Sinks(_)),
        }
    }

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

    /// Whether it holds the first tokens of layers whose others are elsewhere.
    pub(crate) fn is_of_sinks(&self) -> bool {
        self.most_blocks < usize::MAX
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

    #[test]
    fn whole_pages_have_the_latest_tokens_beside_them() {
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
        let whole = KvForm {
            k: KvType::WHOLE[0],
            v: KvType::WHOLE[0],
            recent_tokens: 100,
            sink_tokens: 0,
            window_tokens: None,
        };
        let forms = KvForms::new(whole)
            .with_layers(0..=0, KvType::F16.into())
            .unwrap();
        let layout = KvLayout::new(&[full, full, window, full], forms);
        // The latest 100 tokens, and those of the block in which they begin.
        assert_eq!((layout.keep_tail(), layout.keep_edge(300)), (162, 192));
        // Layer 0 alone in half precision, layers 1 and 3 whole, the window in half precision too.
        assert_eq!(layout.layers, [(0, 0), (1, 0), (3, 0), (1, 1)]);
        let recent = layout.groups[1].recent.unwrap();
        assert_eq!((recent.group, layout.groups[2].layers), (2, 2));
        assert_eq!(
            layout.groups[2].kind.state,
            LayerState::Window { tokens: 164 }
        );
        assert_eq!(layout.groups[3].geometry.k_type, KvType::F16);
        // With the first tokens beside them: two blocks of these, whatever the length.
        let exempt = forms.map(|form| KvForm {
            sink_tokens: 65,
            ..form
        });
        let exempt = KvLayout::new(&[full, full, window, full], exempt);
        let sinks = exempt.groups[1].recent.unwrap().sinks.unwrap();
        assert_eq!(exempt.groups[sinks].most_blocks, 2);
        let more = exempt.context_bytes(64_000, 64) - layout.context_bytes(64_000, 64);
        assert_eq!(more, 2 * exempt.groups[sinks].block_bytes() as u64);
        // And with the latest tokens alone after them nothing grows any more.
        let bounded = KvForms::new(KvForm {
            sink_tokens: 4,
            window_tokens: Some(1000),
            ..whole
        });
        let bounded = KvLayout::new(&[full, window], bounded);
        let most = bounded.context_bytes(64_000, 64);
        assert_eq!(bounded.context_bytes(128_000, 64), most);
        assert_eq!(bounded.layers, [(0, 0), (2, 0)]);
        // 64 tokens × 64 channels × 4 bits, scales and middles of two groups of tokens.
        assert_eq!(layout.groups[1].geometry.k_bytes(), 2048 + 2 * 64 * 4);
        // The row in slot 227 reads from 128 on: its last 100 tokens begin in that block.
        let from: Vec<usize> = [0, 99, 162, 163, 227]
            .map(|slot| recent.first_slot(slot))
            .into();
        assert_eq!(from, [0, 0, 0, 64, 128]);
    }
}
