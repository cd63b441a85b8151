//! Pairs that stand for several tokens.

use longview_kernels::Isa;
use longview_kernels::page::{
    KvType, PAGE_TOKENS, PageGeometry, QueryBits, read_key, read_value, write_key, write_value,
};

use crate::cache::{Cache, Noise};

/// A pair that counts as *n* is *n* pairs that are the same.
#[test]
fn pairs_that_count_as_several_are_as_many() {
    let forms = KvType::ALL.into_iter().chain(KvType::DOTTED);
    for kv_type in forms {
        let (dim, tokens, times) = (64, 40, 5);
        let geom = PageGeometry {
            head_dim: dim,
            v_dim: dim,
            k_type: kv_type,
            v_type: kv_type,
        };
        let one = Cache::new(geom, tokens, 1.0, 3, 4);
        let mut many = Cache::new(geom, tokens * times, 1.0, 3, 4);
        let (mut key, mut value) = (vec![0.0; dim], vec![0.0; dim]);
        for slot in 0..tokens * times {
            read_key(&geom, &one.pages[0].0, slot / times, &mut key);
            read_value(&geom, &one.pages[0].1, slot / times, &mut value);
            let (k, v) = &mut many.pages[slot / PAGE_TOKENS];
            write_key(&geom, k, slot % PAGE_TOKENS, &key);
            write_value(&geom, v, slot % PAGE_TOKENS, &value);
        }
        let mut weighted = one;
        weighted.log_weights = vec![(times as f32).ln(); PAGE_TOKENS];
        let q = Noise(5).normals(3 * dim, 0.2);
        for isa in Isa::available() {
            let output = |cache: &Cache, end: usize| {
                let partials = cache.attend(isa, &q, &vec![0..end as u32; 3], 0.0);
                let mut out = vec![0.0; 3 * dim];
                partials.finish(isa, None, &mut out);
                out
            };
            let (left, right) = (output(&weighted, tokens), output(&many, tokens * times));
            // Dotted pages round what weights a page's values by its largest.
            let tolerance = match kv_type {
                KvType::Dotted(dotted) if dotted.queries == QueryBits::Eight => 2e-2,
                KvType::Dotted(_) => 2e-4,
                _ => 1e-5,
            };
            for (a, b) in left.iter().zip(&right) {
                assert!((a - b).abs() <= tolerance, "{isa} {kv_type}: {a} for {b}");
            }
        }
    }
}
