#!/usr/bin/env python3
"""Train the reference model on planted facts in public-domain text.

Two runs, three quarters of an hour together on two cores (README.md in this folder has the commands). A stage ends
by processor time, so that a busy machine trains as long as an idle one.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional

from corpus import encode_corpus, load_or_train_tokenizer
from induction import install_induction_circuit
from model import NeedleModel, Shape
from muon import MuonWithAdamW
from tasks import ANSWER, PLAIN_TEXT, TaskGenerator

COPY_HEAVY = {"recall": 0.4, "copy": 0.15, "quote": 0.15, "track": 0.1, "text": 0.2}
RECALL_HEAVY = {"recall": 0.4, "copy": 0.05, "quote": 0.2, "track": 0.15, "text": 0.2}
WARM_UP_STEPS = 100
SMALLEST_RATE = 0.05
LOG_EVERY = 25
SAVE_EVERY = 400


@dataclass(frozen=True)
class Stage:
    """Sequences of one length for some minutes of processor time per thread."""

    minutes: float
    length: int
    batch: int
    mix: dict[str, float]
    max_position: int
    skip_probability: float


RUNS = {
    "first": [Stage(8, 256, 32, COPY_HEAVY, 1 << 16, 0.3), Stage(12, 512, 16, RECALL_HEAVY, 1 << 17, 0.5)],
    "second": [
        Stage(8, 1024, 8, RECALL_HEAVY, 1 << 20, 0.6),
        Stage(8, 2048, 4, RECALL_HEAVY, 1 << 20, 0.6),
        Stage(6, 4096, 2, RECALL_HEAVY, 1 << 20, 0.6),
    ],
}


@dataclass
class Progress:
    """Counts, and running means of what a log line reports."""

    steps: int = 0
    tokens: int = 0
    means: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        self.means[name] = 0.97 * self.means.get(name, value) + 0.03 * value

    def line(self, stage: int, seconds: float) -> str:
        answer, loss, text = (self.means.get(name, 0.0) for name in ("answer", "answer_loss", "text_loss"))
        return (
            f"{seconds:6.0f} s  stage {stage}  step {self.steps}  {self.tokens / 1e6:.2f}M tokens  "
            f"answer tokens right {answer:.3f}  answer loss {loss:.3f}  text loss {text:.3f}  "
            f"{self.tokens / seconds:.0f} tokens/s"
        )


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    shape = Shape()
    tokenizer = load_or_train_tokenizer(arguments.tokenizer, arguments.texts, shape.vocabulary)
    generator = TaskGenerator(tokenizer, encode_corpus(tokenizer, arguments.texts), seed=1)
    model = NeedleModel(shape)
    install_induction_circuit(model)
    if arguments.start is not None:
        model.load_state_dict(torch.load(arguments.start, weights_only=True)["model"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.2f}M parameters, {len(generator.corpus):,} tokens of text", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    train(model, generator, RUNS[arguments.run], arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True, help="folder of .txt files; heldout.txt is left out")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json; made from the texts if absent")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--run", choices=sorted(RUNS), default="first")
    parser.add_argument("--start", type=Path, help="checkpoint to go on from")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the minutes of every stage")
    parser.add_argument("--steps", type=int, help="stop each stage after so many steps (to try the script)")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def train(model: NeedleModel, generator: TaskGenerator, stages: list[Stage], arguments: argparse.Namespace) -> None:
    """Run the stages; a checkpoint after each, and one every few hundred steps."""
    optimiser = MuonWithAdamW(model)
    progress = Progress()
    clock = thread_clock(arguments.threads)
    total = sum(stage.minutes for stage in stages) * 60 * arguments.scale
    for number, stage in enumerate(stages):
        end = clock() + stage.minutes * 60 * arguments.scale
        last_step = progress.steps + arguments.steps if arguments.steps is not None else math.inf
        while clock() < end and progress.steps < last_step:
            take_step(model, optimiser, generator, stage, progress, learning_rate(clock() / total, progress.steps))
            if progress.steps % LOG_EVERY == 0 or progress.steps == last_step:
                print(progress.line(number, clock()), flush=True)
            if progress.steps % SAVE_EVERY == 0:
                save(model, progress, arguments.out / "latest.pt")
        save(model, progress, arguments.out / f"{arguments.run}-{number}.pt")


def take_step(
    model: NeedleModel,
    optimiser: MuonWithAdamW,
    generator: TaskGenerator,
    stage: Stage,
    progress: Progress,
    rate: float,
) -> None:
    """One batch: weighted cross-entropy over the tokens that count, then an update."""
    tokens, weights, positions = draw_batch(generator, stage)
    targets, weights = tokens[:, 1:], weights[:, 1:]
    counted = weights > 0
    logits = model.logits(model.hidden(tokens, positions)[:, :-1][counted])
    losses = functional.cross_entropy(logits.float(), targets[counted], reduction="none")
    counted_weights = weights[counted]
    ((losses * counted_weights).sum() / counted_weights.sum()).backward()
    optimiser.step(rate)
    progress.steps += 1
    progress.tokens += tokens.numel()
    with torch.no_grad():
        answers = counted_weights >= ANSWER
        if answers.any():
            right = (logits[answers].argmax(-1) == targets[counted][answers]).float().mean().item()
            progress.note("answer", right)
            progress.note("answer_loss", losses[answers].mean().item())
        text = counted_weights <= PLAIN_TEXT
        if text.any():
            progress.note("text_loss", losses[text].mean().item())


def draw_batch(generator: TaskGenerator, stage: Stage) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, loss weights and positions, each [batch][length]."""
    tokens, weights, positions = [], [], []
    for _ in range(stage.batch):
        sequence, sequence_weights = generator.sample(stage.length, stage.mix)
        tokens.append(sequence)
        weights.append(sequence_weights)
        limit = max(stage.max_position, stage.length)
        positions.append(generator.positions(stage.length, limit, stage.skip_probability))
    return (
        torch.tensor(np.array(tokens), dtype=torch.long),
        torch.tensor(np.array(weights), dtype=torch.float32),
        torch.tensor(np.array(positions)),
    )


def learning_rate(done: float, step: int) -> float:
    """Share of the full rate: a short warm-up, then half a cosine over the run (`done` from 0 to 1)."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return min(1.0, step / WARM_UP_STEPS) * (SMALLEST_RATE + (1 - SMALLEST_RATE) * cosine)


def thread_clock(threads: int) -> Callable[[], float]:
    """Seconds of processor time per thread since now."""
    start = time.process_time()
    return lambda: (time.process_time() - start) / threads


def save(model: NeedleModel, progress: Progress, path: Path) -> None:
    torch.save({"model": model.state_dict(), "step": progress.steps}, path)


if __name__ == "__main__":
    main()
