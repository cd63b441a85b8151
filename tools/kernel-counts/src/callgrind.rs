//! Instructions executed by calls, counted by valgrind's callgrind.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use longview_kernels::activation::Activation;
use longview_kernels::page::KvType;
use longview_kernels::{Exec, Format, Isa, Numerics};

use crate::cases::{self, Work};

/// Instruction sets that are counted.
const COUNTED: [Isa; 2] = [Isa::Avx2, Isa::Scalar];
/// The function whose calls are counted; its symbol is its name.
const MEASURED: &str = "longview_measured";

/// Counts every kernel under every instruction set.
pub(crate) fn count() -> Result<BTreeMap<String, u64>> {
    let folder = std::env::temp_dir().join(format!("kernel-counts-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let counted = count_in(&folder);
    std::fs::remove_dir_all(&folder)?;
    counted
}

fn count_in(folder: &Path) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for isa in COUNTED {
        if !isa.is_available() {
            println!("kernel-counts: {isa} skipped: this processor lacks it");
            continue;
        }
        let out = folder.join(isa.to_string());
        let run = Command::new("valgrind")
            .args(["--tool=callgrind", "--collect-atstart=no"])
            .arg(format!("--toggle-collect={MEASURED}"))
            .arg(format!("--dump-after={MEASURED}"))
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(std::env::current_exe()?)
            .arg(crate::INSIDE)
            .env("LONGVIEW_ISA", isa.to_string())
            .output()
            .context("valgrind")?;
        if !run.status.success() {
            bail!("valgrind failed:\n{}", String::from_utf8_lossy(&run.stderr));
        }
        // One dump for each call, numbered from 1.
        let names = String::from_utf8(run.stdout)?;
        for (i, name) in names.lines().enumerate() {
            let dump = folder.join(format!("{isa}.{}", i + 1));
            let dump = std::fs::read_to_string(&dump).context("a dump of callgrind")?;
            let summary = dump.lines().find_map(|line| line.strip_prefix("summary: "));
            let count: u64 = summary
                .context("a dump without a summary")?
                .trim()
                .parse()?;
            ensure!(count > 0, "callgrind counted nothing for {name}");
            counts.insert(format!("{isa} {name}"), count);
        }
    }
    Ok(counts)
}

/// Runs every kernel once, with `LONGVIEW_ISA`, and prints their names in order.
pub(crate) fn run_all() -> Result<()> {
    let isa = Isa::from_environment()?;
    let exec = Exec::new(1, isa, Numerics::Default);
    let run = |name: String, mut work: Work<'_>| {
        // Once before, so that buffers have grown.
        work();
        longview_measured(&mut Measured(&mut *work));
        println!("{name}");
    };
    for format in [
        Format::Q4_0,
        Format::Q8_0,
        Format::Q4_K,
        Format::Q6_K,
        Format::F16,
    ] {
        for rows in [1, 12] {
            let work = cases::product(&exec, format, 64, 512, rows);
            run(format!("product {format} 64×512, rows {rows}"), work);
        }
        let work = cases::pack(&exec, format, 64, 512);
        run(format!("pack {format} 64×512"), work);
    }
    run(
        "quantise 4×1024".to_owned(),
        cases::quantise(&exec, 4, 1024),
    );
    for kv in [KvType::F16, KvType::Q8] {
        for (phase, rows) in [("decode", 4), ("prefill", 24)] {
            let work = cases::attention(isa, kv, 64, rows);
            run(format!("attention {phase} {kv}, rows {rows}"), work);
        }
        let page = cases::write_page(isa, kv, 64);
        run(format!("page of 64 {kv}"), page);
    }
    run("norm 4×1024".to_owned(), cases::norm(isa, 4, 1024));
    run("rope 4×2048".to_owned(), cases::rope(isa, 4));
    let silu = cases::gate(isa, Activation::Silu, 4096);
    run("gate 4096".to_owned(), silu);
    run("residual 4096".to_owned(), cases::residual(isa, 4096));
    run("mass 4096".to_owned(), cases::mass(isa, 4096));
    for rows in [1, 16] {
        let work = cases::delta(isa, rows);
        run(format!("delta, rows {rows}"), work);
    }
    Ok(())
}

/// A call to count.
pub(crate) struct Measured<'a>(&'a mut dyn FnMut());

/// Callgrind counts from the entry of this function to its end.
// SAFETY: no other symbol of this program has the name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "Rust" fn longview_measured(call: &mut Measured<'_>) {
    (call.0)();
}
