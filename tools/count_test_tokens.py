#!/usr/bin/env python3
"""Count the tokens of the reference model that the tests read, test by test.

    python tools/count_test_tokens.py [--out tokens.tsv]

Nothing in Longview counts them, so a copy of the last commit does: a few lines are put into the forward pass that write how
many tokens each longer pass read to a file, all tests are built, and each is run alone. The exit code is 1 when a test reads
more than 16,000 or all of them more than 64,000, the limits that CONTRIBUTING.md states, or when one fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = "crates/longview-models/src/model.rs"
BEFORE = "        let mut batch = Batch::new(segments, self.identity())?;\n"
# Width tells the reference model, and what tests make of it, from everything smaller. A token alone is an answer's, and
# nothing may be allocated for it: a test looks.
COUNTING = """        let tokens = segments.iter().map(|segment| segment.tokens.len());
        let tokens: usize = tokens.filter(|&tokens| tokens > 1).sum();
        if tokens > 0
            && self.blueprint().hidden == 384
            && let Ok(path) = std::env::var("LONGVIEW_TEST_TOKENS")
        {
            let mut file = std::fs::File::options().append(true).open(path).unwrap();
            std::io::Write::write_all(&mut file, format!("{tokens}\\n").as_bytes()).unwrap();
        }
"""
MOST_OF_A_TEST, MOST_OF_ALL = 16_000, 64_000


@dataclass(frozen=True)
class Counted:
    tokens: int
    binary: str
    test: str
    passed: bool
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file for a line a test")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # A test runs programs as another user, who has to reach what it writes to.
        os.chmod(folder, 0o755)
        copy = Path(folder) / "longview"
        subprocess.run(["git", "worktree", "add", "--detach", copy, "HEAD"], cwd=ROOT, check=True)
        try:
            counted = list(count(copy, Path(folder) / "tokens"))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", copy], cwd=ROOT, check=True)
    counted.sort(key=lambda one: (-one.tokens, one.binary, one.test))
    if arguments.out:
        lines = (f"{one.tokens}\t{one.binary}\t{one.test}\t{one.passed}\t{one.seconds:.2f}\n" for one in counted)
        arguments.out.write_text("".join(lines))
    sys.exit(report(counted))


def count(copy: Path, tokens: Path):
    """Every test of the workspace, run alone."""
    source = copy / PLACE
    text = source.read_text()
    if text.count(BEFORE) != 1:
        sys.exit(f"{PLACE}: the place in front of which tokens are counted is not there: {BEFORE.strip()}")
    source.write_text(text.replace(BEFORE, COUNTING + BEFORE))
    for binary, crate, program in built(copy):
        listed = run([program, "--list"], crate).stdout
        for test in (line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")):
            tokens.write_text("")
            tokens.chmod(0o666)
            began = time.monotonic()
            ran = run([program, "--exact", test], crate, LONGVIEW_TEST_TOKENS=str(tokens))
            seconds = time.monotonic() - began
            read = sum(map(int, tokens.read_text().split()))
            yield Counted(read, binary, test, ran.returncode == 0, seconds)


def built(copy: Path):
    """Name, folder of the crate and program of each binary of tests."""
    command = ["cargo", "test", "--workspace", "--all-features", "--no-run", "--message-format", "json"]
    environment = os.environ | {"CARGO_TARGET_DIR": str(ROOT / "target")}
    made = subprocess.run(command, cwd=copy, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    for message in map(json.loads, made.stdout.splitlines()):
        if message.get("executable") and message["profile"]["test"]:
            crate = Path(message["manifest_path"]).parent
            yield f"{crate.name}/{message['target']['name']}", crate, message["executable"]


def run(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=folder, env=os.environ | more, capture_output=True, text=True)


def report(counted: list[Counted]) -> int:
    total = sum(one.tokens for one in counted)
    of_binary = Counter()
    for one in counted:
        of_binary[one.binary] += one.tokens
    for binary, tokens in of_binary.most_common():
        if tokens:
            print(f"{tokens:>7,}  {binary}")
    print(f"{total:>7,}  in all; the most of one test: {counted[0].tokens:,} ({counted[0].test})")
    failed = [one for one in counted if not one.passed]
    for one in failed:
        print(f"FAILED   {one.binary} {one.test}")
    return int(total > MOST_OF_ALL or counted[0].tokens > MOST_OF_A_TEST or bool(failed))


if __name__ == "__main__":
    main()
