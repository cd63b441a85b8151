//! A model whose keys, values and queries follow from a token's id alone and are rotated to its
//! position.

use longview_kernels::rope::{RotaryRows, RotaryTable};
use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::{
    AttendWorkspace, Attention, Batch, Context, Identity, KvError, RopeSet, Segment, Wanted,
};

pub(crate) const DIM: usize = 16;
pub(crate) const THETA: f64 = 10_000.0;
pub(crate) const SCALE: f32 = 0.5;

pub(crate) const IDENTITY: Identity = Identity {
    model: 1,
    rope: RopeSet::Short,
    numerics: Numerics::F32,
};

/// Numbers in −1..1 that depend on a token's id alone: its key, value and query before rotation.
pub(crate) fn vector(id: u32, seed: u32) -> Vec<f32> {
    let mut x = u64::from(id) * 0x9e37_79b9 + u64::from(seed) * 0x85eb_ca6b + 1;
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..DIM).map(|_| next()).collect()
}

/// Reads tokens with one head a layer.
pub(crate) struct Reader {
    exec: Exec,
    table: RotaryTable,
    workspace: AttendWorkspace,
}

impl Reader {
    pub(crate) fn new(threads: usize) -> Reader {
        Reader {
            exec: Exec::new(threads, Isa::best(), Numerics::F32),
            table: RotaryTable::new(THETA, DIM),
            workspace: AttendWorkspace::default(),
        }
    }

    /// Reads `ids`; returns the attention of each in every one of `layers` layers.
    pub(crate) fn read(
        &mut self,
        context: &mut Context,
        ids: &[u32],
        layers: usize,
    ) -> Result<Vec<Vec<f32>>, KvError> {
        let first = context.len() as u32;
        let positions: Vec<u32> = (first..first + ids.len() as u32).collect();
        let mut rows = RotaryRows::new();
        rows.set(&self.table, &positions);
        let gather = |seed| ids.iter().flat_map(|&id| vector(id, seed)).collect();
        let (mut k, v, mut q): (Vec<f32>, Vec<f32>, Vec<f32>) = (gather(1), gather(2), gather(3));
        rows.rotate(self.exec.isa, 0, 1, DIM, &mut k);
        rows.rotate(self.exec.isa, 0, 1, DIM, &mut q);
        let segment = Segment {
            context,
            tokens: ids,
            wanted: Wanted::Nothing,
        };
        let mut batch = Batch::new(vec![segment], IDENTITY)?;
        let (table, isa) = (&self.table, self.exec.isa);
        let attention = Attention {
            heads: 1,
            scale: SCALE,
            softcap: 0.0,
            sinks: None,
            rotate: &|_, positions, queries| {
                let mut turn = RotaryRows::new();
                turn.set_turn(table, positions);
                for query in queries.chunks_exact_mut(DIM) {
                    turn.rotate(isa, 0, 1, DIM, query);
                }
            },
        };
        let mut outs = Vec::new();
        for layer in 0..layers {
            batch.append(&self.exec, layer, &k, &v);
            let mut out = vec![0.0; ids.len() * DIM];
            batch.attend(
                &self.exec,
                layer,
                &attention,
                &q,
                &mut out,
                &mut self.workspace,
            )?;
            outs.push(out);
        }
        batch.commit();
        Ok(outs)
    }
}
