//! Contexts over a tier that keeps copies.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::tier::{BlockInfo, BlockKey, Hold, Origin, Tier, TierError, TierUsage};
use longview_kv::{
    AttendWorkspace, Block, BlockHash, Context, KvError, KvForm, KvLayout, KvType, LayerState,
    Ledger, Sparse, Store,
};

use super::common::*;

/// A tier that keeps copies, and can be told to lose what it holds and to be slow.
#[derive(Default)]
pub(crate) struct Copies {
    pub(crate) blocks: Mutex<BTreeMap<BlockKey, (BlockInfo, Vec<u8>)>>,
    pub(crate) damaged: AtomicBool,
    /// Blocks of these places in their contexts are evicted when they are about to be held, one each
    /// time.
    pub(crate) vanishing: Mutex<Vec<u32>>,
    pub(crate) is_slow: AtomicBool,
}

impl Tier for Copies {
    fn name(&self) -> &str {
        "copies"
    }

    fn put(&self, info: &BlockInfo, block: &Arc<Block>) -> Result<(), TierError> {
        let copy = (info.clone(), block.bytes().to_vec());
        self.blocks.lock().unwrap().entry(info.key).or_insert(copy);
        Ok(())
    }

    fn find(&self, key: &BlockKey) -> Option<BlockInfo> {
        Some(self.blocks.lock().unwrap().get(key)?.0.clone())
    }

    fn after(&self, parent: &BlockHash) -> Vec<BlockInfo> {
        let blocks = self.blocks.lock().unwrap();
        let infos = blocks.values().map(|(info, _)| info);
        infos
            .filter(|info| info.parent == *parent && info.key.group == 0)
            .cloned()
            .collect()
    }

    fn read(&self, keys: &[BlockKey], layer: usize, out: &mut [u8]) -> Result<(), TierError> {
        let blocks = self.blocks.lock().unwrap();
        let slice = out.len() / keys.len();
        for (key, out) in keys.iter().zip(out.chunks_exact_mut(slice)) {
            let (info, bytes) = blocks.get(key).ok_or(TierError::Missing(*key))?;
            assert_eq!(slice, info.shape.layer_bytes);
            if self.damaged.load(Ordering::Relaxed) && info.index == 2 {
                return Err(TierError::Damaged {
                    place: "here".to_owned(),
                    key: *key,
                    what: "told so".to_owned(),
                });
            }
            out.copy_from_slice(&bytes[layer * slice..(layer + 1) * slice]);
        }
        Ok(())
    }

    fn touch(&self, _keys: &[BlockKey]) {}

    fn hold(&self, keys: &[BlockKey]) -> Result<Hold, TierError> {
        let Some(place) = self.vanishing.lock().unwrap().pop() else {
            return Ok(Hold::new(()));
        };
        let mut blocks = self.blocks.lock().unwrap();
        let key = keys.iter().find(|key| blocks[key].0.index == place);
        let key = *key.expect("such a block is to be taken over");
        blocks.remove(&key);
        Err(TierError::Missing(key))
    }

    fn remove(&self, key: &BlockKey) -> Result<(), TierError> {
        self.blocks.lock().unwrap().remove(key);
        Ok(())
    }

    fn sync(&self) -> Result<(), TierError> {
        Ok(())
    }

    fn usage(&self) -> TierUsage {
        TierUsage::default()
    }

    fn for_each(&self, visit: &mut dyn FnMut(&BlockInfo)) {
        self.blocks
            .lock()
            .unwrap()
            .values()
            .for_each(|(info, _)| visit(info));
    }

    fn read_rate(&self) -> Option<f64> {
        let slow = self.is_slow.load(Ordering::Relaxed);
        Some(if slow { 1.0 } else { 1e12 })
    }
}

pub(crate) struct World {
    pub(crate) layout: Arc<KvLayout>,
    pub(crate) tier: Arc<Copies>,
    pub(crate) exec: Exec,
    pub(crate) workspace: AttendWorkspace,
}

impl World {
    pub(crate) fn new(states: &[LayerState]) -> World {
        World::storing(states, KvType::F16.into())
    }

    pub(crate) fn storing(states: &[LayerState], form: KvForm) -> World {
        World {
            layout: mixed(states, form),
            tier: Arc::default(),
            exec: Exec::new(2, Isa::best(), Numerics::Default),
            workspace: AttendWorkspace::default(),
        }
    }

    /// A store as after a restart: nothing in memory, everything in the tier.
    pub(crate) fn store(&self, limit: u64) -> Arc<Store> {
        let tiers: Vec<Arc<dyn Tier>> = vec![self.tier.clone()];
        Arc::new(Store::new(Ledger::with_limit(limit), tiers))
    }

    pub(crate) fn context(&self, store: &Arc<Store>) -> Context {
        let origin = Arc::new(Origin {
            seed: BlockHash::seed(&[("model", b"1")]),
            model: "test".to_owned(),
            identity: String::new(),
        });
        Context::in_store(self.layout.clone(), store.clone(), origin, IDENTITY)
    }

    /// Reads `ids` from where the context stands, in chunks.
    pub(crate) fn read(
        &mut self,
        context: &mut Context,
        ids: &[u32],
        chunk: usize,
    ) -> Result<Vec<f32>, KvError> {
        let mut out = Vec::new();
        for ids in ids.chunks(chunk) {
            let rows = vec![(&mut *context, ids.len())];
            out.extend(try_step(rows, ids, &self.exec, &mut self.workspace)?);
        }
        Ok(out)
    }
}

pub(crate) fn ids(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i * 7 % 1000).collect()
}

pub(crate) fn row(out: &[f32], at: usize) -> &[f32] {
    &out[at * HEADS * DIM..(at + 1) * HEADS * DIM]
}

/// Forms that hold first, older and latest tokens apart.
pub(crate) fn split_forms() -> [KvForm; 4] {
    let plain = KvForm::from(KvType::F16);
    let kivi = KvType::WHOLE[0];
    [
        KvForm {
            recent_tokens: 100,
            ..kivi.into()
        },
        KvForm {
            k: KvType::Q8,
            v: KvType::Sparse(Sparse { percent: 50 }),
            recent_tokens: 30,
            sink_tokens: 65,
            ..plain
        },
        KvForm {
            sink_tokens: 4,
            ..KvType::Q4.into()
        },
        KvForm {
            recent_tokens: 64,
            sink_tokens: 4,
            window_tokens: Some(500),
            ..kivi.into()
        },
    ]
}
