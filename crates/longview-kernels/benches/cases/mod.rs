//! Kernels with deterministic inputs, ready to be called again and again: for the benches here and
//! for `tools/kernel-counts`, which counts their instructions.

use longview_kernels::activation::{Activation, add};
use longview_kernels::attention::{
    AttentionScratch, PageRef, Partials, QueryRows, SPAN_TOKENS, attend_span,
};
use longview_kernels::logits::Mass;
use longview_kernels::norm::{NormWeight, RmsNorm};
use longview_kernels::page::{
    KvType, PAGE_TOKENS, PageGeometry, StridedRows, pack_page, write_tokens,
};
use longview_kernels::recurrent::{DeltaRows, DeltaScratch, DeltaShape, GatedDelta, HeadOrder};
use longview_kernels::rope::{RotaryRows, RotaryTable};
use longview_kernels::{
    Activations, AlignedBytes, Exec, Format, Isa, Need, Packed, matmul, needed,
};

/// A kernel and its inputs.
pub(crate) type Work<'a> = Box<dyn FnMut() + 'a>;

/// Numbers between -1 and 1 that repeat late.
fn numbers(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0)
        .collect()
}

/// y = x · Wᵀ of `rows` rows, with `n` outputs and `k` inputs.
///
/// # Panics
/// When `k` is not whole blocks.
pub(crate) fn product(exec: &Exec, format: Format, n: usize, k: usize, rows: usize) -> Work<'_> {
    let bytes = weights(format, n, k);
    let weights = Packed::pack(format, n, k, &bytes, &|row| row, &exec.pool)
        .expect("the bytes are those of the shape");
    let mut x = Activations::new();
    let need = needed(exec.numerics, format);
    x.set(exec, &numbers(rows * k), rows, k, need);
    let mut out = vec![0.0; rows * n];
    Box::new(move || matmul(exec, &x, &weights, &mut out))
}

/// Bringing `n` rows of `k` weights into the layout that products read, as when a model is loaded.
///
/// # Panics
/// When `k` is not whole blocks.
pub(crate) fn pack(exec: &Exec, format: Format, n: usize, k: usize) -> Work<'_> {
    let bytes = weights(format, n, k);
    Box::new(move || {
        let packed = Packed::pack(format, n, k, &bytes, &|row| row, &exec.pool);
        std::hint::black_box(packed.expect("the bytes are those of the shape"));
    })
}

/// Rounding `rows` rows of `k` numbers to int8.
pub(crate) fn quantise(exec: &Exec, rows: usize, k: usize) -> Work<'_> {
    let x = numbers(rows * k);
    let mut activations = Activations::new();
    Box::new(move || activations.set(exec, &x, rows, k, Need::BLOCKS))
}

/// Attention of `rows` query rows over one span, on the calling thread.
pub(crate) fn attention<'a>(isa: Isa, kv: KvType, head_dim: usize, rows: usize) -> Work<'a> {
    let geom = geometry(kv, head_dim);
    let page_bytes = geom.k_bytes() + geom.v_bytes();
    let mut bytes = AlignedBytes::zeroed(SPAN_TOKENS / PAGE_TOKENS * page_bytes);
    let data = numbers(PAGE_TOKENS * head_dim);
    let mut fill = filling(isa, kv, head_dim);
    for page in bytes.chunks_exact_mut(page_bytes) {
        fill(&data, page.split_at_mut(geom.k_bytes()));
    }
    let q: Vec<f32> = numbers(rows * head_dim).iter().map(|x| x * 0.1).collect();
    let visible = vec![0..SPAN_TOKENS as u32; rows];
    let mut scratch = AttentionScratch::new();
    let mut partials = Partials::new(rows, geom.v_dim);
    Box::new(move || {
        let pages: Vec<PageRef<'_>> = bytes
            .chunks_exact(page_bytes)
            .map(|bytes| {
                let (k, v) = bytes.split_at(geom.k_bytes());
                PageRef::new(k, v)
            })
            .collect();
        let rows = QueryRows {
            heads: 1,
            q: &q,
            visible: &visible,
            softcap: 0.0,
        };
        attend_span(isa, &geom, &pages, &rows, &mut scratch, &mut partials);
    })
}

/// Writing a page of keys and values: token by token, or whole from one in single precision.
pub(crate) fn write_page<'a>(isa: Isa, kv: KvType, head_dim: usize) -> Work<'a> {
    let geom = geometry(kv, head_dim);
    let (mut k, mut v) = (vec![0; geom.k_bytes()], vec![0; geom.v_bytes()]);
    let data = numbers(PAGE_TOKENS * head_dim);
    let mut fill = filling(isa, kv, head_dim);
    Box::new(move || fill(&data, (&mut k, &mut v)))
}

/// What fills the keys and the values of a page with numbers.
fn filling(isa: Isa, kv: KvType, head_dim: usize) -> impl FnMut(&[f32], (&mut [u8], &mut [u8])) {
    let geom = geometry(kv, head_dim);
    let floats = geometry(KvType::F32, head_dim);
    let mut whole = (vec![0; floats.k_bytes()], vec![0; floats.v_bytes()]);
    move |data, (k, v)| {
        let rows = StridedRows {
            data,
            stride: head_dim,
        };
        if !geom.is_whole() {
            return write_tokens(isa, &geom, k, v, 0, PAGE_TOKENS, rows, rows);
        }
        let (whole_k, whole_v) = &mut whole;
        write_tokens(isa, &floats, whole_k, whole_v, 0, PAGE_TOKENS, rows, rows);
        pack_page(&floats, (whole_k, whole_v), &geom, (k, v));
    }
}

/// Root-mean-square norm of `rows` rows of `dim` numbers.
pub(crate) fn norm<'a>(isa: Isa, rows: usize, dim: usize) -> Work<'a> {
    let (x, weight) = (numbers(rows * dim), numbers(dim));
    let mut out = vec![0.0; rows * dim];
    Box::new(move || {
        let norm = RmsNorm {
            weight: &weight,
            form: NormWeight::Plain,
            epsilon: 1e-5,
        };
        norm.rows(isa, &x, &mut out);
    })
}

/// Turning `rows` rows of 32 heads of 64 channels by their positions.
pub(crate) fn rope<'a>(isa: Isa, rows: usize) -> Work<'a> {
    let (heads, head_dim) = (32, 64);
    let positions: Vec<u32> = (0..rows as u32).collect();
    let mut angles = RotaryRows::new();
    angles.set(&RotaryTable::new(10_000.0, head_dim), &positions);
    let mut x = numbers(rows * heads * head_dim);
    Box::new(move || angles.rotate(isa, 0, heads, head_dim, &mut x))
}

/// The gate of a feed-forward part over `count` numbers.
pub(crate) fn gate<'a>(isa: Isa, activation: Activation, count: usize) -> Work<'a> {
    let (first, up) = (numbers(count), numbers(count));
    let mut gate = first.clone();
    Box::new(move || {
        // Gated again and again, numbers would come to nothing.
        gate.copy_from_slice(&first);
        activation.gate(isa, &mut gate, &up);
    })
}

/// Adding `count` numbers to the residual stream.
pub(crate) fn residual<'a>(isa: Isa, count: usize) -> Work<'a> {
    let (mut x, y) = (numbers(count), numbers(count));
    Box::new(move || add(isa, &mut x, &y))
}

/// What the exponentials of `count` logits add up to, as when a token is drawn.
pub(crate) fn mass<'a>(isa: Isa, count: usize) -> Work<'a> {
    let logits = numbers(count);
    Box::new(move || {
        let mut mass = Mass::new(1.0);
        mass.add(isa, &logits);
        std::hint::black_box(mass.total());
    })
}

/// One head of a gated delta layer, of the shape of Qwen3.5, reading `rows` rows into its state.
pub(crate) fn delta<'a>(isa: Isa, rows: usize) -> Work<'a> {
    let shape = DeltaShape {
        key_heads: 1,
        value_heads: 1,
        key_dim: 128,
        value_dim: 128,
        taps: 4,
    };
    let conv = numbers(shape.taps * shape.channels());
    let mixed = numbers(rows * shape.channels());
    let (decay, beta) = (vec![0.95; rows], vec![0.5; rows]);
    let mut state = vec![0.0; shape.head_state()];
    let mut out = vec![0.0; rows * shape.group() * shape.value_dim];
    let mut scratch = DeltaScratch::default();
    Box::new(move || {
        let layer = GatedDelta {
            shape,
            order: HeadOrder::Grouped,
            conv: &conv,
        };
        let inputs = DeltaRows {
            mixed: &mixed,
            decay: &decay,
            beta: &beta,
        };
        layer.read(isa, 0, &inputs, &mut state, &mut out, &mut scratch);
    })
}

/// Bytes of `n` rows of `k` weights.
fn weights(format: Format, n: usize, k: usize) -> Vec<u8> {
    let row_bytes = format.bytes_for(k).expect("k is whole blocks");
    // Without the bit that makes a half-precision factor an infinity or a NaN.
    (0..n * row_bytes)
        .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] & 0xbf)
        .collect()
}

fn geometry(kv: KvType, head_dim: usize) -> PageGeometry {
    PageGeometry {
        head_dim,
        v_dim: head_dim,
        k_type: kv,
        v_type: kv,
    }
}
