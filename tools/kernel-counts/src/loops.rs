//! The innermost vector loops of the AVX-512 kernels, read from this program's disassembly.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::counts::Loops;

/// A function is taken when its name contains all of one of these lists. Functions of several formats that came out the
/// same are one function with the name of any of them, so that all formats are listed.
const FUNCTIONS: [&[&str]; 7] = [
    &["matmul::avx512", "source::"],
    &["matmul::avx512::float", "::Half"],
    &["matmul::avx512::wide_float::compute"],
    &["run_avx512", "attention::"],
    &["attention::amx"],
    &["run_beside_tiles"],
    &["activations::forms::avx512"],
];
/// Instructions on 512-bit registers that make a loop a vector loop.
const VECTORS: usize = 4;

/// Reads this program.
pub(crate) fn count() -> Result<BTreeMap<String, Loops>> {
    let output = Command::new("objdump")
        .args(["--disassemble", "--no-show-raw-insn"])
        .arg(std::env::current_exe()?)
        .output()
        .context("objdump")?;
    ensure!(output.status.success(), "objdump failed");
    let loops = count_in(&String::from_utf8(output.stdout)?);
    ensure!(
        !loops.is_empty(),
        "no AVX-512 kernel found: the names in tools/kernel-counts/src/loops.rs are out of date"
    );
    Ok(loops)
}

fn count_in(disassembly: &str) -> BTreeMap<String, Loops> {
    let mut found = BTreeMap::new();
    // Functions begin with a line `address <symbol>:` and end with an empty one.
    for function in disassembly.split("\n\n") {
        let Some((symbol, body)) = function
            .trim_start()
            .split_once(">:\n")
            .and_then(|(head, body)| Some((head.split_once(" <")?.1, body)))
        else {
            continue;
        };
        let name = format!("{:#}", rustc_demangle::demangle(symbol));
        if !FUNCTIONS
            .iter()
            .any(|parts| parts.iter().all(|part| name.contains(part)))
        {
            continue;
        }
        let loops = innermost(
            &body
                .lines()
                .filter_map(Instruction::parse)
                .collect::<Vec<_>>(),
        );
        if loops.loops > 0 {
            // Instances of one name from different places are the same code.
            let kept: &mut Loops = found.entry(short(&name)).or_default();
            if loops.instructions > kept.instructions {
                *kept = loops;
            }
        }
    }
    found
}

/// The name without the paths' common beginning.
fn short(name: &str) -> String {
    name.replace("longview_kernels::", "")
}

struct Instruction<'a> {
    address: u64,
    /// Mnemonic and operands.
    text: &'a str,
}

impl<'a> Instruction<'a> {
    /// Reads `  address:\tmnemonic operands`.
    fn parse(line: &'a str) -> Option<Instruction<'a>> {
        let (address, text) = line.split_once(":\t")?;
        let address = u64::from_str_radix(address.trim(), 16).ok()?;
        Some(Instruction { address, text })
    }

    /// Where a jump leads.
    fn target(&self) -> Option<u64> {
        let (mnemonic, operands) = self.text.split_once(' ')?;
        if !mnemonic.starts_with('j') {
            return None;
        }
        let target = operands.split_whitespace().next()?;
        u64::from_str_radix(target, 16).ok()
    }

    fn is_vector(&self) -> bool {
        self.text.contains("%zmm")
    }

    /// Whether it moves a vector register from or to the stack.
    fn is_spill(&self) -> bool {
        let registers = ["%zmm", "%ymm", "%xmm"];
        self.text.contains("(%rsp") && registers.iter().any(|r| self.text.contains(r))
    }
}

/// All loops of a function's `body` that hold vector instructions and no other loop: a loop is what
/// lies between a jump back and where it leads.
fn innermost(body: &[Instruction<'_>]) -> Loops {
    let Some(first) = body.first() else {
        return Loops::default();
    };
    // By beginning; a `continue` is a jump back to the same place, and the last one counts.
    let mut loops = BTreeMap::new();
    for instruction in body {
        let back = first.address..=instruction.address;
        if let Some(target) = instruction.target().filter(|target| back.contains(target)) {
            loops.insert(target, instruction.address);
        }
    }
    let mut total = Loops::default();
    for (&start, &end) in &loops {
        let holds_another = loops
            .range(start + 1..)
            .any(|(_, &inner_end)| inner_end <= end);
        let inside = body.iter().filter(|i| (start..=end).contains(&i.address));
        let vectors = inside.clone().filter(|i| i.is_vector()).count();
        if holds_another || vectors < VECTORS {
            continue;
        }
        total.loops += 1;
        total.instructions += inside.count() as u64;
    }
    if total.loops > 0 {
        total.spills = body.iter().filter(|i| i.is_spill()).count() as u64;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISASSEMBLY: &str = "
0000000000001000 <longview_kernels::matmul::avx512::float::compute::<float::Half>>:
    1000:\tvmovups (%rdi),%zmm0
    1006:\tnop
    1007:\tvmovups (%rsi),%zmm1
    100d:\tvmovups %zmm1,0x40(%rsp)
    1013:\tvfmadd231ps (%rsi){1to16},%zmm0,%zmm1
    1019:\tvaddps 0x40(%rsp),%zmm1,%zmm1
    101f:\tjne    1007 <x+0x7>
    1021:\tadd    $0x1,%rax
    1025:\tjb     1006 <x+0x6>
    102b:\tjmp    1040 <x+0x40>
    1040:\tret

0000000000002000 <other>:
    2000:\tvmovups %zmm1,0x40(%rsp)
    2006:\tjmp    2000 <other>
";

    #[test]
    fn the_innermost_loop_and_its_spills_are_counted() {
        let counted = count_in(DISASSEMBLY);
        let expected = Loops {
            loops: 1,
            instructions: 5,
            spills: 2,
        };
        assert_eq!(counted.len(), 1);
        assert_eq!(
            counted.get("matmul::avx512::float::compute::<float::Half>"),
            Some(&expected)
        );
    }
}
