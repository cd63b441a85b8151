//! Where the bytes of a context are.

use std::collections::BTreeMap;

use crate::context::Context;
use crate::run::Slot;

impl Context {
    /// Bytes of its blocks by where they are: `memory`, or a tier's name. A block that is in memory and
    /// in a tier counts in both; states of recurrent layers count in memory.
    pub fn bytes_by_place(&self) -> BTreeMap<String, u64> {
        let mut places: BTreeMap<String, u64> = BTreeMap::new();
        let mut add = |place: &str, bytes: u64| {
            *places.entry(place.to_owned()).or_default() += bytes;
        };
        for (run, group) in self.groups.iter().zip(&self.layout.groups) {
            let bytes = group.block_bytes() as u64;
            for (_, slot) in run.slots() {
                match slot {
                    Slot::Open(_) => add("memory", bytes),
                    Slot::Removed => {}
                    Slot::Sealed(handle) => {
                        if handle.is_resident() {
                            add("memory", bytes);
                        }
                        let tiers = self.store().map_or(&[][..], |store| store.tiers());
                        let holds = tiers.iter().find(|tier| tier.find(&handle.key()).is_some());
                        if let Some(tier) = holds {
                            add(tier.name(), bytes);
                        }
                    }
                }
            }
        }
        match self.state_bytes() {
            0 => {}
            bytes => add("memory", bytes),
        }
        places
    }
}
