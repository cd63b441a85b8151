//! How fast the forms of keys and values are read, next to half precision.
//!
//! `cargo run --release -p longview-kernels --example form_speed -- [threads] [head_dim] [rows] [form]`
//!
//! A decode step's attention of `rows` query heads a KV head over more pages than any cache holds. Half
//! precision and a form are read in turns, so that both meet the same moods of the machine; the
//! shortest times count, and the ratios of neighbouring turns show how far to trust them.

#[path = "../attention_speed/cache.rs"]
#[expect(dead_code, reason = "the other example reads caches again and again")]
mod cache;

use std::time::Instant;

use cache::{Cache, Reading};
use longview_kernels::page::{KiviBits, KiviGroup, KiviQueries, KvType, PAGE_TOKENS};
use longview_kernels::{Isa, Pool};

/// Bytes of the pages of every form: more than any cache.
const BYTES: usize = 512 << 20;

const TURNS: usize = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |a| a.parse());
    let (threads, head_dim, rows) = (number(2)?, number(64)?, number(4)?);
    let only = arguments.next();
    let isa = Isa::from_environment()?;
    let pool = Pool::new(threads);
    println!("{isa}, {threads} threads, head size {head_dim}, {rows} rows");
    let half = Cache::new(KvType::F16, head_dim, BYTES);
    let kivi = |bits, group| KvType::kivi(bits, group);
    let int8 = |kv_type: KvType| kv_type.with_queries(KiviQueries::Int8);
    let forms = [
        KvType::Q8,
        KvType::Q4,
        kivi(KiviBits::Four, KiviGroup::Tokens32),
        int8(kivi(KiviBits::Four, KiviGroup::Tokens32)),
        kivi(KiviBits::Four, KiviGroup::Tokens64),
        int8(kivi(KiviBits::Four, KiviGroup::Tokens64)),
        kivi(KiviBits::Two, KiviGroup::Tokens32),
        int8(kivi(KiviBits::Two, KiviGroup::Tokens32)),
        KvType::WHOLE[3],
        KvType::WHOLE[4],
        KvType::DOTTED[0],
        KvType::DOTTED[1],
        KvType::DOTTED[2],
        KvType::DOTTED[3],
    ];
    let seconds_a_token = |cache: &Cache| {
        let start = Instant::now();
        cache.attend(isa, &pool, rows, Reading::Once);
        start.elapsed().as_secs_f64() / (cache.pages() * PAGE_TOKENS) as f64
    };
    for form in forms {
        if only.as_ref().is_some_and(|only| *only != form.to_string()) {
            continue;
        }
        let cache = Cache::new(form, head_dim, BYTES);
        let mut ratios = Vec::new();
        let (mut of_half, mut of_form) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..TURNS {
            let (a, b) = (seconds_a_token(&half), seconds_a_token(&cache));
            (of_half, of_form) = (of_half.min(a), of_form.min(b));
            ratios.push(a / b);
        }
        ratios.sort_by(f64::total_cmp);
        println!(
            "{:24} {:6.1} M tokens/s a head, f16 {:6.1}: {:.2} times; turn by turn {:.2} ({:.2}-{:.2}); {:.1} GB/s",
            form.to_string(),
            1e-6 / of_form,
            1e-6 / of_half,
            of_half / of_form,
            ratios[TURNS / 2],
            ratios[0],
            ratios[TURNS - 1],
            cache.bytes() as f64 / (of_form * (cache.pages() * PAGE_TOKENS) as f64) / 1e9,
        );
    }
    Ok(())
}
