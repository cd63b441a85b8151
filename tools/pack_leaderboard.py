"""Pack what `longview eval leaderboard --output FOLDER` measured into one file for the repository.

    python tools/pack_leaderboard.py FOLDER docs/leaderboard.jsonl.xz

All shares are put together and sorted, each outcome once; answers are left out, as the page has none.
`xz -dc` gives a `results.jsonl` back from which the same command goes on.
"""

import json
import lzma
import pathlib
import sys


def main() -> None:
    folder, target = map(pathlib.Path, sys.argv[1:])
    identity, outcomes = None, {}
    for file in sorted(folder.glob("results*.jsonl")):
        # A line that a running process has only begun is left to the next time.
        whole = file.read_text().rpartition("\n")[0].splitlines()
        for at, line in enumerate(whole):
            line = json.loads(line)
            if at > 0:
                line["answers"] = []
                # Of samples that were drawn or asked otherwise before, the newer ones.
                held = outcomes.get(order(line))
                if held is None or drawn(line) >= drawn(held):
                    outcomes[order(line)] = line
            elif identity in (None, line):
                identity = line
            else:
                sys.exit(f"{file} belongs to another run: {line} instead of {identity}")
    if identity is None:
        sys.exit(f"there are no results in {folder}")
    lines = [identity, *(outcomes[key] for key in sorted(outcomes))]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    target.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{target}: {len(outcomes)} outcomes, {target.stat().st_size} bytes")


def order(outcome: dict) -> tuple:
    names = ("length", "task", "sample", "question", "setup")
    return tuple(outcome[name] for name in names)


def drawn(outcome: dict) -> int:
    return outcome.get("drawn", 0)


if __name__ == "__main__":
    main()
