//! A context: what a model has read, kept as keys and values.

use std::sync::Arc;

use longview_kernels::Numerics;

use crate::BLOCK_TOKENS;
use crate::error::KvError;
use crate::hash::BlockHash;
use crate::keep::Kept;
use crate::layout::{Group, KvLayout, LayerState};
use crate::ledger::Ledger;
use crate::pattern::Sparse;
use crate::places::Places;
use crate::read::Reads;
use crate::recurrent::RecurrentState;
use crate::run::{BlockRun, Slot};
use crate::shared::SharedList;
use crate::store::Store;
use crate::tier::{BlockKey, BlockShape, Hold, Origin};
use crate::tokens::{PIECE, Tokens};
use crate::watched::Watched;

/// Which set of rotary frequencies a context was created with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RopeSet {
    /// The model's only set, or its set for short contexts.
    #[default]
    Short,
    /// The set for contexts planned beyond the model's original length (longrope).
    Long,
}

/// What must agree before state computed by one run may be used by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// A number that tells loaded models apart inside one process.
    pub model: u64,
    /// Rotary frequencies, fixed when the context is created.
    pub rope: RopeSet,
    /// Numerics class.
    pub numerics: Numerics,
}

/// Hashes of blocks that forks share at once.
const HASHES: usize = 64;

/// What a model has read.
///
/// Blocks are shared between forks and copied when one of them writes, and so are the lists of blocks
/// and tokens: [`Context::fork`] copies no keys or values, and costs the same for any length. In
/// a [`Store`], full blocks are sealed under a hash of their tokens and of all before them, and found
/// again by any context that reads the same.
pub struct Context {
    pub(crate) layout: Arc<KvLayout>,
    pub(crate) ledger: Ledger,
    identity: Identity,
    pub(crate) tokens: SharedList<u32, PIECE>,
    /// Where the tokens lie in the blocks.
    pub(crate) places: Places,
    /// The blocks of each layer group; none of recurrent ones.
    pub(crate) groups: Vec<BlockRun>,
    /// The states of each layer group that is recurrent.
    pub(crate) states: Vec<Option<RecurrentState>>,
    pub(crate) home: Option<Home>,
    /// Which pairs stay, where a keep method decides that.
    pub(crate) kept: Option<Box<Kept>>,
    /// What the tokens of a prompt attend to, where it is not everything.
    pub(crate) sparse: Option<Sparse>,
    /// Which pages an answer's tokens read, where it is not all.
    pub(crate) reads: Option<Box<Reads>>,
    /// What answers attend to, where somebody asks.
    pub(crate) watched: Option<Box<Watched>>,
    /// Tokens whose blocks were lost, and that were not taken over again.
    lost: usize,
}

/// A context's place in a store.
#[derive(Clone)]
pub(crate) struct Home {
    pub(crate) store: Arc<Store>,
    pub(crate) origin: Arc<Origin>,
    /// The hash of every full block so far.
    pub(crate) chain: SharedList<BlockHash, HASHES>,
    /// What stands before the block with this number, where it is called otherwise than the block
    /// before it: text was moved or removed there.
    pub(crate) moved: Option<(usize, BlockHash)>,
    /// Keep what was taken over from being evicted while this context or a fork lives.
    pub(crate) holds: Vec<Arc<Hold>>,
}

impl Context {
    /// An empty context.
    pub fn new(layout: Arc<KvLayout>, ledger: Ledger, identity: Identity) -> Context {
        let groups = layout.groups.iter().map(|_| BlockRun::default()).collect();
        let of_group = |group: &Group| group.is_recurrent().then(RecurrentState::default);
        let states = layout.groups.iter().map(of_group).collect();
        Context {
            layout,
            ledger,
            identity,
            tokens: SharedList::default(),
            places: Places::default(),
            groups,
            states,
            home: None,
            sparse: None,
            reads: None,
            watched: None,
            kept: None,
            lost: 0,
        }
    }

    /// An empty context whose blocks live in `store`, found there by what `origin` and the tokens
    /// say. `origin`'s seed must stand for everything that the keys and values depend on.
    pub fn in_store(
        layout: Arc<KvLayout>,
        store: Arc<Store>,
        origin: Arc<Origin>,
        identity: Identity,
    ) -> Context {
        let mut context = Context::new(layout, store.ledger().clone(), identity);
        context.home = Some(Home {
            store,
            origin,
            chain: SharedList::default(),
            moved: None,
            holds: Vec::new(),
        });
        context
    }

    /// Tokens read so far.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.tokens.len() == 0
    }

    /// The ids of the tokens read so far.
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens::of(&self.tokens)
    }

    /// What the context was made for.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The store its blocks live in.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.home.as_ref().map(|home| &home.store)
    }

    /// What its blocks are found by in its store.
    pub fn origin(&self) -> Option<&Arc<Origin>> {
        self.home.as_ref().map(|home| &home.origin)
    }

    /// The names of its sealed blocks, group by group: what going on from its last full block needs,
    /// and the states of recurrent layers on the way.
    pub fn keys(&self) -> Vec<BlockKey> {
        let Some(home) = &self.home else {
            return Vec::new();
        };
        let is_there = |key: &BlockKey| home.store.place_of(key).is_some();
        let mut keys = Vec::new();
        let groups = self.groups.iter().zip(&self.states);
        for (place, ((run, state), group)) in groups.zip(&self.layout.groups).enumerate() {
            if let Some(state) = state {
                keys.extend(state.stored().filter(is_there));
            } else {
                // A context that was cut may have passed blocks that its last full block sees.
                let edge = self.len() - self.len() % BLOCK_TOKENS;
                let first = self.places.slot(self.first_token(group, edge)) / BLOCK_TOKENS;
                let passed = (first..run.first).filter_map(|index| {
                    let group = place as u16;
                    Some(BlockKey {
                        hash: *home.chain.get(index)?,
                        group,
                    })
                });
                keys.extend(passed.filter(is_there));
                keys.extend(run.slots().filter_map(|(_, slot)| match slot {
                    Slot::Sealed(handle) => Some(handle.key()),
                    Slot::Open(_) | Slot::Removed => None,
                }));
            }
        }
        keys
    }

    /// Bytes of the blocks and streams this context refers to, in memory or not, and of what is kept
    /// beside them for a read method; what is shared with forks counts in each.
    pub fn kv_bytes(&self) -> u64 {
        let streams = self.kept.as_ref().map_or(0, |kept| kept.bytes());
        let blocks = self.sum_blocks(|slot| !matches!(slot, Slot::Removed));
        blocks + self.state_bytes() + streams + self.index_bytes()
    }

    /// Whether some of its blocks are not in memory.
    pub(crate) fn is_away(&self) -> bool {
        let mut away = self.groups.iter().flat_map(BlockRun::away);
        let mut states = self.states.iter().flatten();
        away.any(|(_, handle)| !handle.is_resident())
            || states.any(|state| state.awaited().is_some())
    }

    /// Bytes of those of its blocks that are not in memory.
    pub fn away_bytes(&self) -> u64 {
        self.sum_blocks(|slot| match slot {
            Slot::Open(_) | Slot::Removed => false,
            Slot::Sealed(handle) => !handle.is_resident(),
        })
    }

    /// Bytes that must be in memory at once while `chunk_tokens` tokens are read in one pass, the
    /// buffers for what is away included; see [`KvLayout::least_bytes`].
    pub fn least_bytes(&self, chunk_tokens: usize) -> u64 {
        self.layout.least_bytes(chunk_tokens)
    }

    /// A second context with the same content; both grow apart from here. Costs the same for any
    /// length: what both have read is shared, down to the lists of it.
    pub fn fork(&self) -> Context {
        Context {
            layout: Arc::clone(&self.layout),
            ledger: self.ledger.clone(),
            identity: self.identity,
            tokens: self.tokens.clone(),
            places: self.places.clone(),
            groups: self.groups.iter().map(BlockRun::fork).collect(),
            states: self
                .states
                .iter()
                .map(|state| state.as_ref().map(RecurrentState::fork))
                .collect(),
            home: self.home.clone(),
            sparse: self.sparse.clone(),
            reads: self.reads.clone(),
            watched: self.watched.clone(),
            kept: self.kept.clone(),
            lost: self.lost,
        }
    }

    /// Forgets everything from token `len` on.
    ///
    /// # Errors
    /// [`KvError::BeyondEnd`] when the context is shorter, [`KvError::WindowPassed`] when a
    /// sliding-window layer, or a form that holds the latest tokens apart, no longer holds what the token
    /// at `len` must see, which for the first one is nothing,
    /// [`KvError::PairsGone`] when a keep method has dropped pairs of the tokens after it,
    /// [`KvError::NoCheckpoint`] when recurrent layers kept no state there.
    pub fn truncate(&mut self, len: usize) -> Result<(), KvError> {
        if len > self.len() {
            return Err(KvError::BeyondEnd {
                wanted: len,
                held: self.len(),
            });
        }
        self.check_kept(len)?;
        if len > 0 {
            self.check_windows(&self.places, len)?;
        }
        self.go_back(len)?;
        if let Some(kept) = self.kept.as_mut().filter(|_| len < self.tokens.len()) {
            kept.observed.forget_sums();
            kept.go_back(len);
        }
        let shorter = len < self.tokens.len();
        self.tokens.truncate(len);
        self.places.truncate(len);
        self.trim_reads(len);
        if len == 0 {
            // Windows and moved text may have begun further on.
            self.groups.fill_with(BlockRun::default);
        }
        if let Some(home) = self.home.as_mut().filter(|_| shorter) {
            home.cut(&self.places, len);
        }
        self.trim();
        self.share_full();
        Ok(())
    }

    /// Whether the context is what reading its tokens gives; not after a span was removed or taken
    /// over from elsewhere, nor after a keep method has dropped pairs or a read method has left some
    /// out.
    pub fn is_exact(&self) -> bool {
        let whole = self.sparse.is_none() && self.approximate_from().is_none();
        whole && self.places.is_plain() && !self.is_compressed()
    }

    /// Goes back to before the block called `key`, which turned out not to be readable, so that it
    /// is computed again. Returns the tokens that were forgotten; they are to be read again. What is
    /// counted of an answer's rows (pages read, attention observed) is then counted twice of these.
    pub fn lose(&mut self, key: &BlockKey) -> Vec<u32> {
        let forgotten = self.go_back_before(key);
        self.lost += forgotten.len();
        forgotten
    }

    /// Takes over what the store holds of `tokens`, which go on from what is held, after a block before them
    /// was lost and computed again. Returns how many.
    ///
    /// # Errors
    /// As [`Context::attach`].
    pub fn find_again(&mut self, tokens: &[u32]) -> Result<usize, KvError> {
        let before = self.len();
        let all = [self.tokens.to_vec(0..before), tokens.to_vec()].concat();
        let found = self.attach(&all)? - before;
        self.lost -= found.min(self.lost);
        Ok(found)
    }

    /// Tokens that were computed again because blocks were lost, in this context and those it was forked
    /// from.
    pub fn computed_again(&self) -> usize {
        self.lost
    }

    fn go_back_before(&mut self, key: &BlockKey) -> Vec<u32> {
        let place = |run: &BlockRun| {
            let is_it = |slot: &Slot| matches!(slot, Slot::Sealed(handle) if handle.key() == *key);
            let (index, _) = run.slots().find(|(_, slot)| is_it(slot))?;
            Some(index)
        };
        let first = self.groups.iter().filter_map(place).min();
        let mut len = first.map_or(self.len(), |index| {
            let slots = index * BLOCK_TOKENS..usize::MAX;
            let next = self.places.within(slots, self.len()).next();
            next.map_or(self.len(), |(covered, stretch)| {
                stretch.token + covered.start - stretch.slot
            })
        });
        if let Some(home) = &self.home {
            home.store.forget(key);
        }
        let mut states = self.states.iter().flatten();
        if states.any(|state| state.awaits(key)) {
            len = len.saturating_sub(1);
        }
        len = self.nearest_state(len);
        let forgotten = self.tokens.to_vec(len..self.len());
        if self.truncate(len).is_ok() {
            return forgotten;
        }
        // A window has passed: everything is computed again.
        let all = self.tokens.to_vec(0..self.len());
        self.tokens = SharedList::default();
        self.places = Places::default();
        self.groups.fill_with(BlockRun::default);
        if let Some(kept) = &mut self.kept {
            kept.begin_anew();
        }
        self.trim_reads(0);
        for state in self.states.iter_mut().flatten() {
            *state = RecurrentState::default();
        }
        if let Some(home) = &mut self.home {
            home.cut(&self.places, 0);
        }
        all
    }

    /// How its keys and values are laid out.
    pub fn layout(&self) -> &Arc<KvLayout> {
        &self.layout
    }

    /// Whether windows hold what the token after `len` tokens at `places` sees.
    pub(crate) fn check_windows(&self, places: &Places, len: usize) -> Result<(), KvError> {
        for (run, group) in self.groups.iter().zip(&self.layout.groups) {
            let kept = run.first * BLOCK_TOKENS;
            if places.slot(self.first_token(group, len)) < kept {
                return Err(KvError::WindowPassed { wanted: len, kept });
            }
        }
        Ok(())
    }

    /// The first position that the token at `position` attends to in blocks of `group`.
    pub(crate) fn first_token(&self, group: &Group, position: usize) -> usize {
        let edge = self.kept.as_ref().map_or(0, |kept| kept.edge());
        first_visible(group, position).max(group.edge(edge))
    }

    fn sum_blocks(&self, counts: impl Fn(&Slot) -> bool) -> u64 {
        let of_run = |(run, group): (&BlockRun, &Group)| {
            run.slots().filter(|(_, slot)| counts(slot)).count() * group.block_bytes()
        };
        self.groups
            .iter()
            .zip(&self.layout.groups)
            .map(of_run)
            .sum::<usize>() as u64
    }
}

impl Home {
    /// The hash of everything before block `index`.
    pub(crate) fn before(&self, index: usize) -> BlockHash {
        if let Some((_, name)) = self.moved.filter(|(at, _)| *at == index) {
            return name;
        }
        let last = index.checked_sub(1).and_then(|last| self.chain.get(last));
        last.copied().unwrap_or(self.origin.seed)
    }
}

impl Group {
    /// The first token in blocks of this group, when those of full layers begin with token `edge`
    /// because what was before has moved to streams. First tokens that are held apart stay.
    pub(crate) fn edge(&self, edge: usize) -> usize {
        match self.kind.state {
            LayerState::Full if self.is_of_sinks() => 0,
            LayerState::Full => edge,
            LayerState::Window { .. } | LayerState::Recurrent { .. } => 0,
        }
    }

    /// How the bytes of this group's blocks are cut.
    pub(crate) fn shape(&self) -> BlockShape {
        BlockShape {
            layers: self.layers,
            layer_bytes: self.layer_bytes(),
        }
    }
}

/// The first position that the token at `position` attends to.
pub(crate) fn first_visible(group: &Group, position: usize) -> usize {
    match group.kind.state {
        LayerState::Full => 0,
        LayerState::Window { tokens } => (position + 1).saturating_sub(tokens),
        // It sees its state and no position before its own.
        LayerState::Recurrent { .. } => position,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::LayerLayout;
    use longview_kernels::page::KvType;

    fn context(limit: u64) -> Context {
        let full = LayerLayout {
            state: LayerState::Full,
            kv_heads: 1,
            head_dim: 16,
            v_dim: 16,
        };
        let window = LayerLayout {
            state: LayerState::Window { tokens: 100 },
            ..full
        };
        let layout = Arc::new(KvLayout::new(&[full, window], KvType::F16));
        let identity = Identity {
            model: 0,
            rope: RopeSet::Short,
            numerics: Numerics::Default,
        };
        Context::new(layout, Ledger::with_limit(limit), identity)
    }

    fn grow(context: &mut Context, count: usize) {
        context.make_room(count).unwrap();
        context.commit(&vec![7; count], 0.0);
    }

    const BLOCK: u64 = 64 * 32 * 2;

    #[test]
    fn window_layers_drop_what_no_token_sees() {
        let mut context = context(u64::MAX);
        for _ in 0..10 {
            grow(&mut context, 64);
        }
        assert_eq!(context.len(), 640);
        // Ten full blocks; the window of the last chunk began at 576 − 99, in block 7.
        assert_eq!(context.kv_bytes(), (10 + 3) * BLOCK);
        assert!(matches!(
            context.truncate(100),
            Err(KvError::WindowPassed { .. })
        ));
        assert!(matches!(
            context.truncate(641),
            Err(KvError::BeyondEnd { .. })
        ));
        context.truncate(600).unwrap();
        assert_eq!(context.len(), 600);
    }

    #[test]
    fn forks_share_blocks_until_one_writes() {
        let ledger_bytes = |context: &Context| context.ledger.usage().kv;
        let mut first = context(u64::MAX);
        grow(&mut first, 70);
        let held = ledger_bytes(&first);
        let mut second = first.fork();
        assert_eq!(ledger_bytes(&first), held);
        grow(&mut second, 1);
        // The last block of both groups became private; the first is still shared.
        assert_eq!(ledger_bytes(&first), held + 2 * BLOCK);
        assert_eq!((first.len(), second.len()), (70, 71));
        drop(second);
        assert_eq!(ledger_bytes(&first), held);
    }

    #[test]
    fn a_refused_growth_leaves_the_context_as_it_was() {
        let mut context = context(5 * BLOCK);
        grow(&mut context, 128);
        let held = context.kv_bytes();
        assert!(matches!(
            context.make_room(64),
            Err(KvError::OverLimit { .. })
        ));
        assert_eq!((context.len(), context.kv_bytes()), (128, held));
    }
}
