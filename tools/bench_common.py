"""What the comparisons of speed share: cells of the table, runs of Longview, samples kept between runs, the table."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGVIEW = "Longview"
# Passes of which the best counts, on both sides; long ones are run once.
SHORT_PASSES = 2
SHORT_TOKENS = 512


@dataclass(frozen=True)
class Cell:
    """A line of the table: `prefill:512@0`, or `decode:8@65536/q8` with the store of Longview's keys and values."""

    kind: str
    tokens: int
    depth: int
    store: str | None = None

    @staticmethod
    def parse(text: str) -> Cell:
        match = re.fullmatch(r"(prefill|decode):(\d+)@(\d+)(?:/(.+))?", text)
        if match is None:
            raise ValueError(f"{text!r} is not KIND:TOKENS@DEPTH or KIND:TOKENS@DEPTH/STORE")
        kind, tokens, depth, store = match.groups()
        return Cell(kind, int(tokens), int(depth), store)

    def __str__(self) -> str:
        return f"{self.kind}:{self.tokens}@{self.depth}" + (f"/{self.store}" if self.store else "")

    @property
    def passes(self) -> int:
        return SHORT_PASSES if self.depth == 0 and self.tokens <= SHORT_TOKENS else 1

    @property
    def label(self) -> str:
        where = "empty context" if self.depth == 0 else f"depth {self.depth:,}"
        store = f", {self.store} keys and values" if self.store else ""
        return f"{self.kind} {self.tokens:,}, {where}{store}"


class Samples:
    """Measurements by cell and program, in a file when one is given, so that rounds add up over several calls."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.about: dict[str, str] = {}
        self.cells: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        if path is not None and path.exists():
            stored = json.loads(path.read_text())
            self.about = stored["about"]
            for cell, programs in stored["cells"].items():
                for program, measured in programs.items():
                    self.cells[cell][program] = measured

    def add(self, cell: Cell, program: str, measured: dict[str, Any]) -> None:
        self.about[program] = measured.pop("version")
        self.cells[str(cell)][program].append(measured)
        if self.path is not None:
            self.path.write_text(json.dumps({"about": self.about, "cells": self.cells}, indent=1))

    def table(self) -> str:
        """Medians with the smallest and largest round; the fastest peer counts."""
        lines = [
            "| tokens per second | best peer | Longview | ratio | of the limit | peak memory: peer | Longview |",
            "|---|---|---|---|---|---|---|",
        ]
        for text, programs in self.cells.items():
            ours = programs.get(LONGVIEW)
            peers = {name: rounds for name, rounds in programs.items() if name != LONGVIEW}
            best = max(peers, key=lambda name: median(peers[name]), default=None)
            lines.append(
                f"| {Cell.parse(text).label} "
                f"| {f'{rates(peers[best])}, {best}' if best else '–'} "
                f"| {rates(ours) if ours else '–'} "
                f"| {ratio(ours, peers[best]) if ours and best else '–'} "
                f"| {share(ours) if ours else '–'} "
                f"| {peaks(peers, best) if best else '–'} | {peak(ours) if ours else '–'} |"
            )
        return "\n".join(lines)

    def all_peers(self) -> str:
        """Every peer's median, one line a cell."""
        lines = []
        for text, programs in self.cells.items():
            peers = [f"{name} {median(rounds):.1f}" for name, rounds in programs.items() if name != LONGVIEW]
            lines.append(f"- {Cell.parse(text).label}: {', '.join(peers)}")
        return "\n".join(lines)

    def versions(self) -> str:
        return "; ".join(sorted(set(self.about.values())))


def median(rounds: list[dict[str, Any]]) -> float:
    return statistics.median(measured["tokens_per_second"] for measured in rounds)


def rates(rounds: list[dict[str, Any]]) -> str:
    values = [measured["tokens_per_second"] for measured in rounds]
    spread = f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.1f}{spread}"


def ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """The median of the rounds' ratios: rounds are minutes apart, and a machine's speed drifts."""
    pairs = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(ours, theirs, strict=False)]
    spread = f" ({min(pairs):.2f}–{max(pairs):.2f})" if len(pairs) > 1 else ""
    return f"**{statistics.median(pairs):.2f}**{spread}"


def share(rounds: list[dict[str, Any]]) -> str:
    """Of the best that the machine gave, and where memory is the limit, of what memory gave at the time."""
    best = f"{100 * statistics.median(measured['share_of_limit'] for measured in rounds):.0f} %"
    then = [measured["share_at_the_time"] for measured in rounds if measured["share_at_the_time"] is not None]
    return f"{best} ({100 * statistics.median(then):.0f} % at the time)" if then else best


def peak(rounds: list[dict[str, Any]]) -> str:
    return f"{peak_bytes(rounds) / 2**20:,.0f} MiB"


def peaks(peers: dict[str, list[dict[str, Any]]], best: str) -> str:
    """The fastest peer's peak, and the least of all where that is another's."""
    least = min((peak_bytes(rounds), name) for name, rounds in peers.items())
    other = "" if least[1] == best else f" ({least[0] / 2**20:,.0f} MiB: {least[1]})"
    return peak(peers[best]) + other


def peak_bytes(rounds: list[dict[str, Any]]) -> int:
    return max(measured["peak_bytes"] for measured in rounds)


def measure_longview(program: Path, model: Path, cell: Cell, threads: int, synthetic: bool) -> dict[str, Any]:
    """One run of `longview bench`."""
    prompt, generate = (cell.tokens, 0) if cell.kind == "prefill" else (0, cell.tokens)
    command = [
        str(program), "bench", "--model", str(model), "--prompt", str(prompt), "--generate", str(generate),
        "--depth", str(cell.depth), "--threads", str(threads), "--rounds", str(cell.passes), "--json",
    ]  # fmt: skip
    if cell.depth > 0 and synthetic:
        command.append("--synthetic-kv")
    if cell.store is not None:
        command += ["--store", cell.store]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr}")
    report = json.loads(finished.stdout)
    runs = [run for run in report["runs"] if run["kind"] == cell.kind]
    return {
        "tokens_per_second": runs[0]["tokens_per_second"],
        "share_of_limit": runs[0]["share_of_limit"],
        "share_at_the_time": runs[0].get("share_at_the_time"),
        "peak_bytes": report["peak_memory_bytes"],
        "version": longview_version(program),
    }


def longview_version(program: Path) -> str:
    return subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout.strip()
