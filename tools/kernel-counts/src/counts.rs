//! The committed file, and when a count has grown.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail};

/// Growth of a count that is let pass: the compiler's choices, not the kernel's.
const TOLERANCE: f64 = 0.03;
/// Instructions of a loop that may come on top.
const FEW: u64 = 2;

/// All counts of one compiler.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Counts {
    /// `rustc` and its release.
    pub(crate) compiler: String,
    /// Instructions executed, by instruction set and kernel.
    pub(crate) executed: BTreeMap<String, u64>,
    /// Innermost vector loops, by function.
    pub(crate) loops: BTreeMap<String, Loops>,
}

/// The innermost vector loops of a function, taken together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loops {
    /// How many.
    pub(crate) loops: u64,
    /// Their instructions.
    pub(crate) instructions: u64,
    /// Instructions of the whole function that move a vector register from or to the stack.
    pub(crate) spills: u64,
}

/// What [`Counts::compare`] found.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    /// What to print.
    pub(crate) lines: Vec<String>,
    /// Counts that were compared.
    pub(crate) compared: usize,
    /// Counts that have grown beyond the tolerance, or are gone.
    pub(crate) regressions: usize,
}

impl Counts {
    /// Reads what `Display` writes.
    pub(crate) fn parse(text: &str) -> Result<Counts> {
        let mut counts = Counts::default();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        for line in lines.filter(|line| !line.trim().is_empty()) {
            let malformed = || format!("counts.txt: {line:?} is none of its lines");
            let (kind, rest) = line.split_once(' ').with_context(malformed)?;
            if kind == "compiler" {
                counts.compiler = rest.to_owned();
                continue;
            }
            let mut words = rest.splitn(if kind == "executed" { 2 } else { 4 }, ' ');
            let mut number = || -> Result<u64> {
                let word = words.next().with_context(malformed)?;
                word.parse().with_context(malformed)
            };
            match kind {
                "executed" => {
                    let count = number()?;
                    let name = words.next().with_context(malformed)?;
                    counts.executed.insert(name.to_owned(), count);
                }
                "loops" => {
                    let loops = Loops {
                        loops: number()?,
                        instructions: number()?,
                        spills: number()?,
                    };
                    let name = words.next().with_context(malformed)?;
                    counts.loops.insert(name.to_owned(), loops);
                }
                _ => bail!(malformed()),
            }
        }
        Ok(counts)
    }

    /// Compares `now` with these counts. A kind that was not counted now is left out.
    pub(crate) fn compare(&self, now: &Counts) -> Comparison {
        let mut found = Comparison::default();
        let executed = (!now.executed.is_empty()).then_some(&self.executed);
        for (name, &before) in executed.into_iter().flatten() {
            let after = now.executed.get(name).copied();
            found.judge(name, "instructions", before, after, 0);
        }
        let loops = (!now.loops.is_empty()).then_some(&self.loops);
        for (name, before) in loops.into_iter().flatten() {
            let after = now.loops.get(name);
            let (instructions, spills) = (after.map(|l| l.instructions), after.map(|l| l.spills));
            found.judge(name, "instructions", before.instructions, instructions, FEW);
            if after.is_some() {
                found.judge(name, "spills", before.spills, spills, 0);
            }
        }
        let new = loops
            .into_iter()
            .flat_map(|loops| now.loops.keys().filter(|name| !loops.contains_key(*name)));
        for name in new {
            found.regressions += 1;
            found.lines.push(format!(
                "{name}: not in counts.txt, so that nothing guards it; --bless adds it"
            ));
        }
        found
    }
}

impl Comparison {
    fn judge(&mut self, name: &str, what: &str, before: u64, after: Option<u64>, few: u64) {
        self.compared += 1;
        let Some(after) = after else {
            self.regressions += 1;
            self.lines.push(format!("{name}: not found any more"));
            return;
        };
        let allowed = (before as f64 * TOLERANCE) as u64 + few;
        let verdict = if after > before + allowed {
            self.regressions += 1;
            "have grown"
        } else if after + allowed < before {
            "are fewer; --bless would keep it so"
        } else {
            return;
        };
        self.lines
            .push(format!("{name}: {what} {verdict}: {before} → {after}"));
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Written by `cargo kernel-counts --bless`.")?;
        writeln!(f, "compiler {}", self.compiler)?;
        writeln!(f, "\n# Instructions that one call executes: count, name.")?;
        for (name, count) in &self.executed {
            writeln!(f, "executed {count} {name}")?;
        }
        writeln!(
            f,
            "\n# Innermost AVX-512 loops of a function: how many, their instructions, spills of the whole function, name."
        )?;
        for (name, loops) in &self.loops {
            let Loops {
                loops,
                instructions,
                spills,
            } = loops;
            writeln!(f, "loops {loops} {instructions} {spills} {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(executed: u64, instructions: u64, spills: u64) -> Counts {
        let loops = Loops {
            loops: 1,
            instructions,
            spills,
        };
        Counts {
            compiler: "rustc 1.0.0".to_owned(),
            executed: [("avx2 norm of 4".to_owned(), executed)].into(),
            loops: [("tile<Q4, 1>".to_owned(), loops)].into(),
        }
    }

    #[test]
    fn the_file_reads_back() {
        let counts = counts(1_000, 50, 0);
        assert_eq!(Counts::parse(&counts.to_string()).unwrap(), counts);
        assert!(Counts::parse("executed many norm").is_err());
        assert!(Counts::parse("other 1 norm").is_err());
    }

    #[test]
    fn growth_beyond_the_tolerance_and_loss_are_regressions() {
        let before = counts(1_000, 50, 0);
        let regressions = |now: &Counts| before.compare(now).regressions;
        assert_eq!(regressions(&counts(1_030, 53, 0)), 0);
        assert_eq!(regressions(&counts(500, 20, 0)), 0);
        assert_eq!(regressions(&counts(1_031, 50, 0)), 1);
        assert_eq!(regressions(&counts(1_000, 54, 1)), 2);
        let mut gone = counts(1_000, 50, 0);
        gone.loops = [("another".to_owned(), Loops::default())].into();
        // One is not found any more, and one is new.
        assert_eq!(regressions(&gone), 2);
        // Not counted at all, for want of a program.
        gone.loops.clear();
        assert_eq!(regressions(&gone), 0);
        assert_eq!(before.compare(&gone).compared, 1);
    }
}
