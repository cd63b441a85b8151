//! Pages as contexts hold them, and attention over them.

use longview_kernels::attention::{
    AttentionScratch, PageRef, Partials, QueryRows, SPAN_TOKENS, attend_span,
};
use longview_kernels::page::{
    KvType, PAGE_TOKENS, PageGeometry, StridedRows, pack_page, write_tokens,
};
use longview_kernels::{AlignedBytes, Isa, Pool};

const SPAN_PAGES: usize = SPAN_TOKENS / PAGE_TOKENS;

/// Layers and KV heads in a block.
const LAYERS: usize = 16;
const HEADS: usize = 8;

/// Whether every span is read once, all heads of it, or each thread reads one head's span so many
/// times.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Reading {
    Once,
    Again(usize),
}

/// Blocks of pages, each page's keys before its values.
pub(crate) struct Cache {
    geom: PageGeometry,
    bytes: AlignedBytes,
}

impl Cache {
    /// About `bytes` bytes of keys and values of `head_dim` channels, stored as `kv_type`.
    pub(crate) fn new(kv_type: KvType, head_dim: usize, bytes: usize) -> Cache {
        let geom = PageGeometry {
            head_dim,
            v_dim: head_dim,
            k_type: kv_type,
            v_type: kv_type,
        };
        let page = geom.k_bytes() + geom.v_bytes();
        let span = SPAN_PAGES * LAYERS * HEADS * page;
        let mut bytes = AlignedBytes::zeroed(bytes / span * span);
        let data: Vec<f32> = (0..PAGE_TOKENS * geom.head_dim)
            .map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0)
            .collect();
        let rows = StridedRows {
            data: &data,
            stride: geom.head_dim,
        };
        let mut first = vec![0; page];
        let (k, v) = first.split_at_mut(geom.k_bytes());
        if geom.is_whole() {
            let from = PageGeometry {
                k_type: KvType::F32,
                v_type: KvType::F32,
                ..geom
            };
            let (mut from_k, mut from_v) = (vec![0; from.k_bytes()], vec![0; from.v_bytes()]);
            let best = Isa::best();
            write_tokens(
                best,
                &from,
                &mut from_k,
                &mut from_v,
                0,
                PAGE_TOKENS,
                rows,
                rows,
            );
            pack_page(&from, (&from_k, &from_v), &geom, (k, v));
        } else {
            write_tokens(Isa::best(), &geom, k, v, 0, PAGE_TOKENS, rows, rows);
        }
        for page in bytes.chunks_exact_mut(page) {
            page.copy_from_slice(&first);
        }
        Cache { geom, bytes }
    }

    /// Bytes of all pages.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Pages of all layers and heads.
    pub(crate) fn pages(&self) -> usize {
        self.bytes.len() / (self.geom.k_bytes() + self.geom.v_bytes())
    }

    fn page(&self, place: usize) -> PageRef<'_> {
        let bytes = self.geom.k_bytes() + self.geom.v_bytes();
        let (k, v) = self.bytes[place * bytes..][..bytes].split_at(self.geom.k_bytes());
        PageRef::new(k, v)
    }

    /// Attention of `rows` rows a head.
    pub(crate) fn attend(&self, isa: Isa, pool: &Pool, rows: usize, reading: Reading) {
        let geom = &self.geom;
        let spans = self.pages() / (LAYERS * HEADS * SPAN_PAGES);
        let (tasks, heads, times) = match reading {
            Reading::Once => (spans * LAYERS, HEADS, 1),
            Reading::Again(times) => (pool.threads(), 1, times),
        };
        let q: Vec<f32> = (0..heads * rows * geom.head_dim)
            .map(|i| (i % 13) as f32 * 0.01)
            .collect();
        let visible = vec![0..SPAN_TOKENS as u32; rows];
        let workers: Vec<_> = (0..pool.threads())
            .map(|_| {
                let partials = Partials::new(heads * rows, geom.v_dim);
                std::sync::Mutex::new((AttentionScratch::new(), partials))
            })
            .collect();
        pool.run(tasks, &|task, worker| {
            let mut worker = workers[worker].lock().unwrap_or_else(|e| e.into_inner());
            let (scratch, partials) = &mut *worker;
            let (layer, span) = (task / spans, task % spans);
            let pages: Vec<_> = (0..SPAN_PAGES * heads)
                .map(|i| match reading {
                    Reading::Once => {
                        let block = span * SPAN_PAGES + i / heads;
                        self.page((block * LAYERS + layer) * HEADS + i % heads)
                    }
                    // One after another: pages that lie as far apart as in blocks would all fall
                    // into the same sets of a cache.
                    Reading::Again(_) => self.page(task * SPAN_PAGES + i),
                })
                .collect();
            let queries = QueryRows {
                heads,
                q: &q,
                visible: &visible,
                softcap: 0.0,
            };
            for _ in 0..times {
                attend_span(isa, geom, &pages, &queries, scratch, partials);
            }
            std::hint::black_box(partials.sum());
        });
    }
}
