#!/usr/bin/env python3
"""Write tiny random checkpoints of every architecture with the logits of Hugging Face transformers.

Each fixture is a folder as `transformers` saves it (config.json, safetensors) and one or more
expected files with the input ids, the logits of every position, and a greedy continuation.
Expected logits are computed from the saved files, in float32, with eager attention, in one
forward pass over the whole input and without a cache.

    python tools/make_parity_fixtures.py                 # all, a few minutes
    python tools/make_parity_fixtures.py gemma2 qwen3    # some
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from parity.architectures import VOCABULARY, Fixture, all_fixtures

CONTINUATION_TOKENS = 16
# A greedy token is only a fair question when no rounding can change it. Measured on the logits.
SMALLEST_GREEDY_GAP = 0.05
# Two experts that score alike may be chosen either way; measured on the router's scores.
SMALLEST_ROUTER_GAP = 5e-4
# A feature takes part in the result when leaving it out moves the logits by this share.
SMALLEST_EFFECT = 1e-2
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "crates/longview-models/tests/fixtures"

Model = transformers.PreTrainedModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="fixtures to write (default: all)")
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder that holds the fixtures")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    known = {fixture.name: fixture for fixture in all_fixtures()}
    for name in arguments.names or known:
        if name not in known:
            parser.error(f"unknown fixture {name}; known: {', '.join(known)}")
        write_fixture(known[name], arguments.out / name)


def write_fixture(fixture: Fixture, folder: Path) -> None:
    """Try seeds until no greedy choice and no choice of an expert is a near tie, then write."""
    for seed in range(200):
        if folder.exists():
            shutil.rmtree(folder)
        write_checkpoint(fixture, folder, seed)
        model = load_checkpoint(fixture, folder)
        runs = {name: expected_run(model, tokens, seed) for name, tokens in fixture.runs.items()}
        if all(run["greedy_gap"] >= SMALLEST_GREEDY_GAP and run["router_gap"] >= SMALLEST_ROUTER_GAP for run in runs.values()):
            break
    else:
        raise SystemExit(f"{fixture.name}: no seed gives a clear greedy continuation")
    check_effects(fixture, folder, model, runs["expected"])
    for path in folder.iterdir():
        path.chmod(0o644)
    for name, run in runs.items():
        save_run(run, folder / f"{name}.safetensors", seed)
        print_run(fixture, name, model, run, seed)


def write_checkpoint(fixture: Fixture, folder: Path, seed: int) -> None:
    """Random weights in the file layout that transformers publishes, with our own config.json."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        write_json(source / "config.json", fixture.config)
        config = transformers.AutoConfig.from_pretrained(source)
        model = getattr(transformers, fixture.auto_class).from_config(config, attn_implementation="eager", dtype=torch.float32)
        randomise(model, seed)
        model.tie_weights()
        model.save_pretrained(source / "saved")
        tensors = load_file(source / "saved" / "model.safetensors")
    dtype = getattr(torch, fixture.dtype)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in sorted(tensors.items())}
    folder.mkdir(parents=True)
    write_json(folder / "config.json", fixture.config | {"torch_dtype": fixture.dtype})
    if fixture.generation is not None:
        write_json(folder / "generation_config.json", fixture.generation)
    # The spelling that newer transformers releases write; it must be read as the same model.
    newer = json.loads(config.to_json_string()) | {"dtype": fixture.dtype}
    write_json(folder / "config-transformers5.json", {key: newer[key] for key in newer if not key.startswith("_")})
    save_tensors(tensors, folder, fixture.shards)


def randomise(model: Model, seed: int) -> None:
    """Fill every parameter with noise whose scale keeps attention sharp and logits of order one to ten.

    Norm weights and biases are random as well, so that an implementation that forgets one fails.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            centre = neutral_norm(model, name)
            sharper = 0.5 if ("q_norm" in name or "k_norm" in name) else 0.0
            value = centre + sharper + 0.3 * noise
        elif name.endswith("bias"):
            value = 0.3 * noise
        elif name.endswith("A_log"):
            value = noise - 3.0  # states that forget within tens to hundreds of tokens
        elif "embed_tokens" in name:
            value = 0.6 * noise
        elif "lm_head" in name:
            value = 0.5 * noise
        else:
            value = 1.5 * noise / parameter.shape[-1] ** 0.5
        parameter.copy_(value)


def neutral_norm(model: Model, name: str) -> float:
    """The norm weight that changes nothing: some models multiply by one plus the weight."""
    plus_one = model.config.model_type.startswith(("gemma", "qwen3_next", "qwen3_5"))
    return 0.0 if plus_one and "linear_attn" not in name else 1.0


def save_tensors(tensors: dict[str, torch.Tensor], folder: Path, shards: int) -> None:
    """One file, or several with the index that names the file of each tensor."""
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        return
    names = list(tensors)
    per_shard = -(-len(names) // shards)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard * per_shard : (shard + 1) * per_shard]
        save_file({name: tensors[name] for name in part}, folder / file, metadata=metadata)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def load_checkpoint(fixture: Fixture, folder: Path) -> Model:
    """The saved checkpoint in float32: rounded weights stay rounded."""
    model, report = getattr(transformers, fixture.auto_class).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {key: value for key, value in report.items() if value}
    if problems:
        raise SystemExit(f"{folder}: {problems}")
    return model.eval()


def expected_run(model: Model, tokens: int, seed: int) -> dict[str, Any]:
    """Logits of every position and the greedy continuation, each token from a full forward pass."""
    generator = torch.Generator().manual_seed(1000 + seed)
    input_ids = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    router_gaps: list[float] = []
    hooks = [watch_router(module, router_gaps) for name, module in model.named_modules() if is_router(name)]
    sequence = input_ids[None]
    gaps = []
    logits = None
    for _ in range(CONTINUATION_TOKENS):
        step = model(sequence, use_cache=False).logits[0].float()
        logits = step if logits is None else logits
        best = step[-1].topk(2).values
        gaps.append((best[0] - best[1]).item())
        sequence = torch.cat([sequence, step[-1].argmax().view(1, 1)], dim=1)
    for hook in hooks:
        hook.remove()
    return {
        "input_ids": input_ids,
        "logits": logits,
        "greedy_ids": sequence[0, tokens:],
        "greedy_gap": min(gaps),
        "router_gap": min(router_gaps, default=float("inf")),
    }


def is_router(name: str) -> bool:
    return name.endswith("mlp.gate") or name.endswith("block_sparse_moe.gate")


def watch_router(module: torch.nn.Module, gaps: list[float]) -> torch.utils.hooks.RemovableHandle:
    """Record how far the last chosen expert is ahead of the first one left out."""

    def record(router: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _output: Any) -> None:
        scores = inputs[0].reshape(-1, router.weight.shape[1]) @ router.weight.T
        ranked = scores.sort(dim=-1, descending=True).values
        gaps.append((ranked[:, router.top_k - 1] - ranked[:, router.top_k]).min().item())

    return module.register_forward_hook(record)


def check_effects(fixture: Fixture, folder: Path, model: Model, run: dict[str, Any]) -> None:
    """Every configured feature, bias and norm must take part in the expected logits."""
    expected = run["logits"]
    for change in fixture.ablations:
        other = load_changed(fixture, folder, change)
        effect = relative_difference(other(run["input_ids"][None], use_cache=False).logits[0], expected)
        require_effect(fixture.name, str(change), effect)
    for name, parameter in model.named_parameters():
        if "vision_tower" in name or "multi_modal_projector" in name:
            continue
        if "norm" not in name and not name.endswith(("bias", "A_log", "conv1d.weight")):
            continue
        kept = parameter.clone()
        parameter.fill_(neutral_norm(model, name) if "norm" in name else 0.0)
        effect = relative_difference(model(run["input_ids"][None], use_cache=False).logits[0], expected)
        parameter.copy_(kept)
        require_effect(fixture.name, name, effect)


def load_changed(fixture: Fixture, folder: Path, change: dict[str, Any]) -> Model:
    """The same weights under a changed configuration."""
    with tempfile.TemporaryDirectory() as scratch:
        other = Path(scratch) / "model"
        shutil.copytree(folder, other)
        config = json.loads((other / "config.json").read_text())
        write_json(other / "config.json", config | change)
        return load_checkpoint(fixture, other)


def require_effect(fixture: str, feature: str, effect: float) -> None:
    if effect < SMALLEST_EFFECT:
        raise SystemExit(f"{fixture}: {feature} changes the logits by {effect:.1e} only; the fixture would not notice it")


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest over positions of max|actual − expected| ÷ max|expected|."""
    worst = (actual - expected).abs().amax(dim=-1) / expected.abs().amax(dim=-1)
    return worst.max().item()


def token_by_token_difference(model: Model, run: dict[str, Any]) -> float:
    """How far transformers' own cached decoding is from its full forward pass, for information."""
    cache = None
    rows = []
    for token in run["input_ids"]:
        output = model(token.view(1, 1), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        rows.append(output.logits[0, 0])
    return relative_difference(torch.stack(rows), run["logits"])


def save_run(run: dict[str, Any], path: Path, seed: int) -> None:
    tensors = {key: run[key].contiguous() for key in ("input_ids", "logits", "greedy_ids")}
    # One line under one key: safetensors writes several keys in an order that changes from run to run.
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, seed {seed}"
    save_file(tensors, path, metadata={"made_by": f"{made_by}, smallest greedy gap {run['greedy_gap']:.3f}"})
    path.chmod(0o644)


def print_run(fixture: Fixture, name: str, model: Model, run: dict[str, Any], seed: int) -> None:
    logits = run["logits"]
    print(
        f"{fixture.name:22} {name:15} seed {seed:3}  max|logit| {logits.abs().max():6.2f}  "
        f"greedy gap {run['greedy_gap']:.3f}  router gap {run['router_gap']:.4f}  "
        f"transformers cached vs full {token_by_token_difference(model, run):.1e}",
        flush=True,
    )


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
