#!/usr/bin/env python3
"""How long the first token of a second question takes on a context that `longview serve` has read: beside a bare
decode step at that depth plus the prefill of the question's own tokens there, which is the least it can take.

    python tools/measure_second_question.py [FILE.gguf] --longview target/release/longview --tokens 16384

Times are the least of several; the ratio was to be at most 1.2.
"""

import argparse
import json
import random
import subprocess
import sys
import time

from load_server import Server, words, words_of
from serving import serving


def least_seconds(options, own_tokens):
    """Seconds of a prefill of `own_tokens` and of one decode step behind `--tokens` tokens, by `longview bench`."""
    command = [options.longview, "--json", "bench", "--prompt", str(own_tokens), "--generate", "16", "--depth", str(options.tokens),
               "--synthetic-kv", "--threads", str(options.threads), "--rounds", str(options.rounds)]
    if options.model:
        command += ["--model", options.model]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        sys.exit(f"longview bench failed: {said.stderr}")
    runs = {run["kind"]: run for run in json.loads(said.stdout)["runs"]}
    prefill = runs["prefill"]["tokens"] / runs["prefill"]["tokens_per_second"]
    return prefill, 1 / runs["decode"]["tokens_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a GGUF file; the reference model, if none is named")
    parser.add_argument("--longview", default="target/release/longview")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of the context, about")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", default="8GiB")
    options = parser.parse_args()
    rng = random.Random(1)
    arguments = ["--threads", str(options.threads), "--memory", options.memory]
    if options.model:
        arguments += ["--model", options.model]
    with serving(options.longview, *arguments) as served:
        server = Server(served.url, None)
        text = words_of(server, rng, options.tokens)
        server.json("POST", "/v1/contexts", {"text": text, "label": "long"})
        while True:
            made = server.json("GET", "/v1/contexts/long")
            if made["status"] not in ("queued", "reading"):
                break
            time.sleep(0.2)
        if made["status"] != "ready":
            sys.exit(f"the context was not read: {made}")
        first, own = [], 0
        for _ in range(options.rounds + 1):
            answer = server.json("POST", "/v1/chat/completions", {
                "messages": [{"role": "user", "content": f"What is said of {words(rng, 4)}?"}], "max_tokens": 2,
                "temperature": 0, "longview": {"context": "long"}})
            first.append(answer["longview"]["seconds_to_first_token"])
            own = answer["longview"]["computed_tokens"]
    options.tokens = made["tokens"]
    prefill, step = least_seconds(options, own)
    # The first question warms what is touched first.
    ours = min(first[1:])
    report = {
        "context_tokens": made["tokens"], "question_tokens": own, "threads": options.threads, "date": time.strftime("%Y-%m-%d"),
        "seconds_to_first_token": round(ours, 4), "prefill_seconds": round(prefill, 4), "decode_step_seconds": round(step, 4),
        "times_the_least": round(ours / (prefill + step), 3),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
