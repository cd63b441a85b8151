//! Instructions that kernels take, compared with the counts committed in `counts.txt`.
//!
//! Time cannot be tested on a busy machine; instructions can. Two kinds are counted:
//!
//! - what a call executes under `LONGVIEW_ISA=avx2` and `scalar`, by valgrind's callgrind (which has
//!   no AVX-512);
//! - how many instructions the innermost vector loops of the AVX-512 kernels have, and how many of all
//!   their instructions move registers from or to the stack, read from the disassembly of this very
//!   program.
//!
//! `cargo kernel-counts` compares and fails on a regression; `cargo kernel-counts --bless` renews the
//! file. Counts are those of one compiler: under another, or without valgrind or objdump, the part
//! concerned is skipped with a line that says so.

mod callgrind;
#[path = "../../../crates/longview-kernels/benches/cases/mod.rs"]
mod cases;
mod counts;
mod loops;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use counts::Counts;

/// How a run inside callgrind is asked for.
const INSIDE: &str = "run-inside-callgrind";

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => check(),
        ["--bless"] => bless(),
        [INSIDE] => {
            callgrind::run_all()?;
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("cargo kernel-counts [--bless]"),
    }
}

/// Compares what is counted now with the committed counts.
fn check() -> Result<ExitCode> {
    let committed = Counts::parse(&std::fs::read_to_string(file()).context("counts.txt")?)?;
    let compiler = compiler()?;
    if committed.compiler != compiler {
        println!(
            "kernel-counts: skipped: the committed counts are those of {}, this is {compiler}; \
             `cargo kernel-counts --bless` renews them",
            committed.compiler
        );
        return Ok(ExitCode::SUCCESS);
    }
    let comparison = committed.compare(&counted(compiler)?);
    comparison.lines.iter().for_each(|line| println!("{line}"));
    if comparison.regressions > 0 {
        println!(
            "kernel-counts: FAILED: {} of {} counts have grown; if that is meant, \
             `cargo kernel-counts --bless` renews them",
            comparison.regressions, comparison.compared
        );
        return Ok(ExitCode::FAILURE);
    }
    println!("kernel-counts: {} counts hold", comparison.compared);
    Ok(ExitCode::SUCCESS)
}

/// Renews the committed counts.
fn bless() -> Result<ExitCode> {
    let counted = counted(compiler()?)?;
    if counted.executed.is_empty() || counted.loops.is_empty() {
        bail!("renewing the counts takes valgrind, objdump and an x86-64 machine");
    }
    std::fs::write(file(), counted.to_string())?;
    println!(
        "kernel-counts: {} counts written to {}",
        counted.executed.len() + counted.loops.len(),
        file().display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Counts everything that can be counted here.
fn counted(compiler: String) -> Result<Counts> {
    let mut counts = Counts {
        compiler,
        ..Counts::default()
    };
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        println!("kernel-counts: skipped: the counts are those of x86-64 Linux");
        return Ok(counts);
    }
    if installed("valgrind") {
        counts.executed = callgrind::count()?;
    } else {
        println!("kernel-counts: executed instructions skipped: valgrind is not installed");
    }
    if installed("objdump") {
        counts.loops = loops::count()?;
    } else {
        println!("kernel-counts: loops skipped: objdump is not installed");
    }
    Ok(counts)
}

fn installed(program: &str) -> bool {
    let version = Command::new(program).arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

/// The compiler's release.
fn compiler() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output();
    let output = output.context("rustc --version")?;
    let text = String::from_utf8(output.stdout)?;
    let words: Vec<&str> = text.split_whitespace().take(2).collect();
    Ok(words.join(" "))
}

/// Where the counts are committed.
fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("counts.txt")
}
