//! Time of single kernels: `cargo bench -p longview-kernels -- [PART OF A NAME]`.
//!
//! `LONGVIEW_ISA` chooses the instruction set, `LONGVIEW_BENCH_THREADS` the threads (1). Sizes are
//! those of a llama of one billion parameters; products of one row go through one matrix that may
//! stay in a cache: `examples/matmul_speed` is the place for memory.

mod cases;

use cases::Work;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use longview_kernels::activation::Activation;
use longview_kernels::page::KvType;
use longview_kernels::{Exec, Format, Isa, Numerics};

const INPUTS: usize = 2048;
const OUTPUTS: usize = 2048;
const HIDDEN: usize = 8192;
const HEAD_DIM: usize = 64;
const VOCABULARY: usize = 128_256;

fn kernels(criterion: &mut Criterion) {
    let isa =
        Isa::from_environment().expect("LONGVIEW_ISA names an instruction set of this machine");
    let threads = std::env::var("LONGVIEW_BENCH_THREADS").map_or(1, |text| {
        text.parse()
            .expect("LONGVIEW_BENCH_THREADS is a number of threads")
    });
    let exec = Exec::new(threads, isa, Numerics::Default);
    let mut bench = Bench(criterion);
    for format in Format::ALL {
        bench.add("pack", format!("{format}"), OUTPUTS * INPUTS, || {
            cases::pack(&exec, format, OUTPUTS, INPUTS)
        });
        // Few, some and many rows take ways of their own.
        for rows in [1, 8, 24, 512] {
            bench.add(
                "product",
                format!("{format}/{rows}"),
                OUTPUTS * INPUTS * rows,
                || cases::product(&exec, format, OUTPUTS, INPUTS, rows),
            );
        }
    }
    for kv in KvType::ALL.into_iter().chain(KvType::WHOLE) {
        for (phase, rows) in [("one", 1), ("decode", 4), ("prefill", 256)] {
            bench.add("attention", format!("{phase}/{kv}"), rows, || {
                cases::attention(isa, kv, HEAD_DIM, rows)
            });
        }
        bench.add("page", format!("{kv}"), 64, || {
            cases::write_page(isa, kv, HEAD_DIM)
        });
    }
    for rows in [1, 512] {
        bench.add("norm", format!("{rows}"), rows * INPUTS, || {
            cases::norm(isa, rows, INPUTS)
        });
        bench.add("rope", format!("{rows}"), rows * INPUTS, || {
            cases::rope(isa, rows)
        });
        bench.add("quantise", format!("{rows}"), rows * INPUTS, || {
            cases::quantise(&exec, rows, INPUTS)
        });
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let name = format!("{activation:?}/{rows}");
            bench.add("gate", name, rows * HIDDEN, || {
                cases::gate(isa, activation, rows * HIDDEN)
            });
        }
        bench.add("residual", format!("{rows}"), rows * INPUTS, || {
            cases::residual(isa, rows * INPUTS)
        });
        bench.add("delta", format!("{rows}"), rows, || cases::delta(isa, rows));
    }
    bench.add("mass", format!("{VOCABULARY}"), VOCABULARY, || {
        cases::mass(isa, VOCABULARY)
    });
}

struct Bench<'c>(&'c mut Criterion);

impl Bench<'_> {
    /// Measures the work that `inputs` makes, which is done only where the name was asked for.
    fn add<'w>(
        &mut self,
        group: &str,
        name: String,
        elements: usize,
        inputs: impl Fn() -> Work<'w>,
    ) {
        let mut group = self.0.benchmark_group(group);
        group.sample_size(20);
        group.throughput(Throughput::Elements(elements as u64));
        group.bench_function(name, |bencher| bencher.iter(inputs()));
        group.finish();
    }
}

criterion_group!(all, kernels);
criterion_main!(all);
