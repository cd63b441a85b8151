//! A model without weights, whose keys, values and queries a test chooses: to see by hand what a
//! method keeps.

use std::sync::Arc;

use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::keep::{
    Allocation, AttentionOf, AttentionShape, Compression, Keep, LayerRows, LayerView, Planned,
    Scores,
};
use longview_kv::{
    AttendWorkspace, Attention, Batch, Context, Identity, KvError, KvLayout, KvType, LayerLayout,
    LayerState, Ledger, RopeSet, Segment, Wanted,
};

use crate::arguments::Arguments;
use crate::choice::Methods;
use crate::method::{Build, Role, Stage};
use crate::registry;
use crate::text::{MethodText, Value};

/// A context of some layers with as many query heads as KV heads; queries are not rotated, and logits
/// are plain products.
pub(crate) struct Toy {
    pub(crate) context: Context,
    pub(crate) exec: Exec,
    /// Query heads a KV head.
    group: usize,
    kv_heads: usize,
    dim: usize,
    layers: usize,
    angle: f32,
}

/// What a position turns a key of a toy that turns by.
const ANGLE: f32 = 0.1;

const IDENTITY: Identity = Identity {
    model: 7,
    rope: RopeSet::Short,
    numerics: Numerics::F32,
};

/// How a [`Toy`] attends.
pub(crate) struct Plain {
    heads: usize,
    /// By how much a position turns the first two channels of a vector; 0 for not at all.
    angle: f32,
}

impl AttentionOf for Plain {
    fn shape(&self, _layer: usize) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            scale: 1.0,
            softcap: 0.0,
        }
    }

    fn rotate(&self, _layer: usize, _set: RopeSet, positions: isize, vectors: &mut [f32]) {
        let (sin, cos) = (positions as f32 * self.angle).sin_cos();
        if let [x, y, ..] = vectors {
            (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
        }
    }

    fn fingerprint(&self) -> Option<&str> {
        Some("toy")
    }

    /// A letter a token.
    fn spelling(&self, token: u32) -> Option<Vec<u8>> {
        Some(vec![token as u8])
    }
}

impl Toy {
    pub(crate) fn new(layers: usize, kv_heads: usize, dim: usize) -> Toy {
        Toy::grouped(layers, kv_heads, dim, 1)
    }

    /// The same with `group` query heads a KV head.
    pub(crate) fn grouped(layers: usize, kv_heads: usize, dim: usize, group: usize) -> Toy {
        let layer = LayerLayout {
            state: LayerState::Full,
            kv_heads,
            head_dim: dim,
            v_dim: dim,
        };
        let layout = Arc::new(KvLayout::new(&vec![layer; layers], KvType::F32));
        Toy {
            context: Context::new(layout, Ledger::unlimited(), IDENTITY),
            exec: Exec::new(2, Isa::best(), Numerics::F32),
            group,
            kv_heads,
            dim,
            layers,
            angle: 0.0,
        }
    }

    /// One whose positions turn the first two channels of a key.
    pub(crate) fn turning(layers: usize, kv_heads: usize, dim: usize) -> Toy {
        Toy {
            angle: ANGLE,
            ..Toy::new(layers, kv_heads, dim)
        }
    }

    /// A key of such a toy turned by so many positions.
    pub(crate) fn turned(positions: isize, [x, y]: [f32; 2]) -> [f32; 2] {
        let (sin, cos) = (positions as f32 * ANGLE).sin_cos();
        [x * cos - y * sin, y * cos + x * sin]
    }

    /// Puts the method `text` in charge, for a prompt of so many tokens.
    pub(crate) fn keep(&mut self, text: &str, prompt: usize) -> Arc<Keep> {
        let mut methods = Methods::new();
        methods.set(Stage::Keep, text).unwrap();
        let keep = Arc::clone(methods.keep().unwrap());
        let model = self.model();
        self.context.keep(&keep, prompt, &model).unwrap();
        keep
    }

    /// Why a method is not put in charge.
    pub(crate) fn refusal(&self, keep: &Arc<Keep>) -> String {
        let mut context = self.context.fork();
        let refused = context.keep(keep, 100, &self.model());
        refused.unwrap_err().to_string()
    }

    /// Reads `count` tokens whose keys, values and queries look like noise.
    pub(crate) fn read(&mut self, count: usize) {
        let start = self.context.len();
        let noise = |token: usize, layer: usize, at: usize| {
            let x = ((start + token) * 7919 + layer * 104_729 + at * 1_299_709) % 1_000_003;
            x as f32 / 5e5 - 1.0
        };
        self.step(count, &|token, layer, at| {
            [0, 500, 900].map(|kind| noise(token, layer, at + kind))
        });
    }

    /// Reads tokens with these keys, for one head; their values are the same, their queries 0.
    pub(crate) fn read_keys<const D: usize>(&mut self, keys: &[[f32; D]]) {
        self.read_keys_and_queries(keys, &vec![[0.0; D]; keys.len()]);
    }

    /// Reads a text, a letter a token, whose keys, values and queries look like noise.
    pub(crate) fn read_text(&mut self, text: &str) {
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        let width = self.kv_heads * self.dim;
        let queries = vec![0.5; tokens.len() * width * self.group];
        self.step_of(&tokens, &queries, &|token, layer, at| {
            let x = (token * 7919 + layer * 104_729 + at * 1_299_709) % 1_009;
            [x as f32 / 500.0 - 1.0; 2]
        });
    }

    /// The same with their queries.
    pub(crate) fn read_keys_and_queries<const D: usize>(
        &mut self,
        keys: &[[f32; D]],
        queries: &[[f32; D]],
    ) {
        self.step(keys.len(), &|token, _, at| {
            let at = at % D;
            [queries[token][at], keys[token][at], keys[token][at]]
        });
    }

    /// Reads tokens with these keys, for one KV head, all with the queries `queries [group]`.
    pub(crate) fn read_grouped<const D: usize>(&mut self, keys: &[[f32; D]], queries: &[[f32; D]]) {
        let queries = queries.concat();
        self.step_with(keys.len(), &queries.repeat(keys.len()), &|token, _, at| {
            [keys[token][at], keys[token][at]]
        });
    }

    /// A fork of it.
    pub(crate) fn fork(&self) -> Toy {
        Toy {
            context: self.context.fork(),
            exec: Exec::new(1, Isa::best(), Numerics::F32),
            ..*self
        }
    }

    /// The keys of a head of the first layer.
    pub(crate) fn keys(&self, head: usize) -> Vec<Vec<f32>> {
        let mut keys = Vec::new();
        self.look(&mut |layer| {
            keys = vec![vec![0.0; self.dim]; layer.pairs(head)];
            layer.keys(head, &mut |page| {
                for (pair, slot) in page.slots.clone().enumerate() {
                    for (d, x) in keys[page.first + pair].iter_mut().enumerate() {
                        *x = page.keys[d * 64 + slot];
                    }
                }
            });
        });
        keys
    }

    /// The attention that the pairs of a head of the first layer have received.
    pub(crate) fn sums(&self, head: usize) -> Vec<f32> {
        let mut sums = Vec::new();
        self.look(&mut |layer| sums = layer.column_sums(head).unwrap().to_vec());
        sums
    }

    /// Shows the first layer as methods see it.
    pub(crate) fn look(&self, visit: &mut dyn FnMut(&LayerView<'_>)) {
        self.context.look(&self.exec, &self.model(), 0, visit);
    }

    pub(crate) fn compress(&mut self) -> Compression {
        self.try_compress().unwrap()
    }

    pub(crate) fn try_compress(&mut self) -> Result<Compression, KvError> {
        let model = self.model();
        self.context.compress(&self.exec, &model)
    }

    /// Compresses what is a whole document, although more is to be read.
    pub(crate) fn compress_document(&mut self) {
        let model = self.model();
        self.context.compress_document(&self.exec, &model).unwrap();
    }

    /// The tokens that a head keeps.
    pub(crate) fn positions(&self, layer: usize, head: usize) -> Vec<u32> {
        self.context.kept_positions(layer, head)
    }

    fn model(&self) -> Plain {
        Plain {
            heads: self.kv_heads * self.group,
            angle: self.angle,
        }
    }

    /// What the one head of a toy of one layer makes of all pairs and of its own, of zeros, when it asks `query`.
    pub(crate) fn attend<const D: usize>(&mut self, query: [f32; D]) -> Vec<f32> {
        let segment = Segment {
            context: &mut self.context,
            tokens: &[0],
            wanted: Wanted::Nothing,
        };
        let mut batch = Batch::new([segment], IDENTITY).unwrap();
        batch.append(&self.exec, 0, &[0.0; D], &[0.0; D]);
        let attention = Attention {
            heads: 1,
            scale: 1.0,
            softcap: 0.0,
            sinks: None,
            rotate: &|_, _, _| {},
        };
        let mut out = vec![f32::NAN; D];
        let room = &mut AttendWorkspace::default();
        batch
            .attend(&self.exec, 0, &attention, &query, &mut out, room)
            .unwrap();
        batch.commit();
        out
    }

    /// `numbers(token, layer, channel of all heads)` gives query, key and value; the query heads of a
    /// group have the same.
    fn step(&mut self, count: usize, numbers: &dyn Fn(usize, usize, usize) -> [f32; 3]) {
        let width = self.kv_heads * self.dim;
        let query = |at: usize| numbers(at / width, 0, at % width)[0];
        let queries: Vec<f32> = (0..count * width).map(query).collect();
        self.step_with(count, &queries, &|token, layer, at| {
            let [_, key, value] = numbers(token, layer, at);
            [key, value]
        });
    }

    /// `queries` are `[tokens][heads][dim]`, the same in all layers.
    fn step_with(
        &mut self,
        count: usize,
        queries: &[f32],
        numbers: &dyn Fn(usize, usize, usize) -> [f32; 2],
    ) {
        self.step_of(&vec![0; count], queries, numbers);
    }

    /// The same of tokens with these ids.
    fn step_of(
        &mut self,
        tokens: &[u32],
        queries: &[f32],
        numbers: &dyn Fn(usize, usize, usize) -> [f32; 2],
    ) {
        let model = self.model();
        let width = self.kv_heads * self.dim;
        let count = tokens.len();
        let segment = Segment {
            context: &mut self.context,
            tokens,
            wanted: Wanted::Nothing,
        };
        let mut batch = Batch::new([segment], IDENTITY).unwrap();
        for layer in 0..self.layers {
            let all: Vec<[f32; 2]> = (0..count * width)
                .map(|at| numbers(at / width, layer, at % width))
                .collect();
            let of = |kind: usize| -> Vec<f32> { all.iter().map(|both| both[kind]).collect() };
            let (keys, values) = (of(0), of(1));
            batch.append(&self.exec, layer, &keys, &values);
            let rows = LayerRows {
                layer,
                q: queries,
                k: &keys,
                v: &values,
            };
            batch.observe(&self.exec, rows, &model);
        }
        batch.commit();
    }
}

/// The pairs that the heads of one layer with these scores get under a rule for budgets.
pub(crate) fn counts(rule: &str, scores: &[Vec<f32>], slots: usize) -> Vec<usize> {
    layer_counts(rule, &[scores.to_vec()], slots).remove(0)
}

/// The same for the heads of several layers.
pub(crate) fn layer_counts(rule: &str, layers: &[Vec<Vec<f32>>], slots: usize) -> Vec<Vec<usize>> {
    let text: MethodText = rule.parse().unwrap();
    let Value::Call(call) = &text.items[0].value else {
        panic!("{rule}")
    };
    let mut rules = registry::parts(Role::Budgets);
    let method = rules.find(|method| method.name == call.name).unwrap();
    let Build::Allocate(build) = method.build else {
        panic!("{rule}")
    };
    let scores: Vec<Scores> = layers.iter().cloned().map(Scores::from).collect();
    let protected = |scores: &Vec<f32>| scores.iter().filter(|&&x| x == f32::INFINITY).count();
    let protected: Vec<Vec<usize>> = layers
        .iter()
        .map(|heads| heads.iter().map(protected).collect())
        .collect();
    let numbers: Vec<usize> = (0..layers.len()).collect();
    let ask = Allocation {
        layers: &numbers,
        scores: &scores,
        protected: &protected,
        slots,
        tokens: layers[0][0].len(),
        planned: Planned {
            slots,
            prompt: layers[0][0].len(),
            heads: layers.iter().map(Vec::len).sum(),
            least: 0,
        },
    };
    ask.counts(&*build(&Arguments::bind(method, call).unwrap()))
}
