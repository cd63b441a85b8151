#!/usr/bin/env python3
"""Load for `longview serve`: many clients with short chats, prompts that begin alike, long documents, and
some that leave in the middle. Standard library only.

    longview serve --port 8080 --memory 4GiB &
    tools/load_server.py --clients 64 --seconds 300 --documents 6 --document-tokens 30000

Says what it measured as one JSON object and ends with 1 when something was wrong: an answer other than
200 or an asked-for 429, more memory than allowed, keys and values left behind, or a gap between tokens
beyond --gap.

With --streams N it measures throughput instead: one stream alone, then N with a shared beginning.
"""

import argparse
import contextlib
import http.client
import json
import random
import sys
import threading
import time
import urllib.parse

from serving import serving


class Server:
    def __init__(self, url, key):
        self.url = urllib.parse.urlparse(url)
        self.headers = {"content-type": "application/json"}
        if key:
            self.headers["authorization"] = f"Bearer {key}"

    def connection(self):
        return http.client.HTTPConnection(self.url.hostname, self.url.port or 80, timeout=600)

    def ask(self, method, path, body=None):
        connection = self.connection()
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, self.headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def json(self, method, path, body=None):
        status, data, _ = self.ask(method, path, body)
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {data[:200]!r}")
        return json.loads(data)

    def metrics(self):
        _, data, _ = self.ask("GET", "/metrics")
        values = {}
        for line in data.decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def stream(self, body, leave_after=None, together=None):
        """(status, seconds to the first text, times of pieces, last chunk with usage). With `together`, a barrier, the
        connection is made before all who share it ask at once."""
        connection = self.connection()
        if together:
            connection.connect()
            together.wait()
        begun = time.monotonic()
        times, last = [], None
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), self.headers)
            answer = connection.getresponse()
            if answer.status != 200:
                answer.read()
                return answer.status, None, [], None
            for line in answer:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                chunk = json.loads(line[6:])
                if chunk.get("error"):
                    return chunk["error"]["message"], None, times, None
                if chunk["choices"] and chunk["choices"][0]["text"]:
                    times.append(time.monotonic())
                if chunk.get("usage"):
                    last = chunk
                if leave_after is not None and time.monotonic() - begun > leave_after:
                    return 200, None, times, None
            first = times[0] - begun if times else None
            return 200, first, times, last
        finally:
            connection.close()


def words(rng, count):
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(rng.choice(letters) for _ in range(4)) for _ in range(count))


def words_of(server, rng, tokens):
    """Words of about so many tokens, by the server's tokenizer."""
    sample = words(rng, 200)
    count = server.json("POST", "/tokenize", {"content": sample})["count"]
    return words(rng, max(1, tokens * 200 // count))


class Load:
    def __init__(self, server, options):
        self.server, self.options = server, options
        self.lock = threading.Lock()
        self.counts = {"good": 0, "refused": 0, "left": 0, "wrong": 0}
        self.wrong, self.gaps, self.firsts = [], [], []
        self.generated = self.prompted = self.reused = self.documents = 0
        rng = random.Random(options.seed)
        self.shared = words(rng, 600)
        # About two tokens a word of four random letters; what it really is, the server counts.
        self.document_words = max(1, options.document_tokens // 2)

    def body(self, rng):
        kind = rng.random()
        common = {"temperature": 0.8, "seed": rng.randrange(1 << 30), "stream": True,
                  "stream_options": {"include_usage": True}, "longview": {}}
        with self.lock:
            document = kind < 0.1 and self.documents < self.options.documents
            self.documents += document
        if document:
            return {"prompt": words(rng, self.document_words), "max_tokens": 32, **common}
        if kind < 0.6:
            return {"prompt": f"{self.shared} {words(rng, 10)}", "max_tokens": 48, **common}
        return {"prompt": words(rng, rng.randrange(3, 40)), "max_tokens": rng.randrange(8, 96), **common}

    def client(self, number, until):
        rng = random.Random(self.options.seed * 1000 + number)
        while time.monotonic() < until:
            leave = rng.random() * 2 if rng.random() < 0.15 else None
            try:
                status, first, times, last = self.server.stream(self.body(rng), leave)
            except OSError as error:
                status, first, times, last = f"{type(error).__name__}: {error}", None, [], None
            with self.lock:
                if status == 429:
                    self.counts["refused"] += 1
                elif status != 200:
                    self.counts["wrong"] += 1
                    self.wrong.append(str(status))
                elif last is None:
                    self.counts["left"] += 1
                else:
                    self.counts["good"] += 1
                    usage = last["usage"]
                    self.generated += usage["completion_tokens"]
                    self.prompted += usage["prompt_tokens"]
                    self.reused += usage["prompt_tokens_details"]["cached_tokens"]
                    self.gaps.append(last["longview"]["longest_gap_seconds"])
                    if first is not None:
                        self.firsts.append(first)
            if status == 429:
                time.sleep(0.2)

    def run(self):
        begun = time.monotonic()
        until = begun + self.options.seconds
        threads = [threading.Thread(target=self.client, args=(number, until), daemon=True)
                   for number in range(self.options.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.options.seconds + 600)
        took = time.monotonic() - begun
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.server.metrics()["longview_sequences_running"] == 0:
                break
            time.sleep(0.1)
        metrics = self.server.metrics()
        left = self.server.json("POST", "/v1/cache/drop", {})["kv_bytes"]
        return self.report(took, metrics, left)

    def report(self, took, metrics, left):
        limit, peak = metrics["longview_memory_limit_bytes"], metrics["longview_memory_peak_bytes"]
        gaps, firsts = sorted(self.gaps), sorted(self.firsts)
        at = lambda values, share: values[min(len(values) - 1, int(share * len(values)))] if values else None
        return {
            "clients": self.options.clients, "seconds": round(took, 1), **self.counts,
            "wrong_examples": self.wrong[:5], "documents": self.documents,
            "generated_tokens": self.generated, "prompt_tokens": self.prompted, "reused_tokens": self.reused,
            "generated_tokens_per_second": round(self.generated / took, 1),
            "first_token_seconds": {"median": at(firsts, 0.5), "p95": at(firsts, 0.95)},
            "longest_gap_seconds": {"median": at(gaps, 0.5), "p95": at(gaps, 0.95), "worst": at(gaps, 1.0)},
            "preemptions": metrics["longview_preemptions_total"],
            "memory_limit_bytes": limit, "memory_peak_bytes": peak, "kv_bytes_left": left,
            "kept": {
                "no_wrong_answers": self.counts["wrong"] == 0,
                "memory": peak <= limit,
                "nothing_left": left == 0,
                "gap": not gaps or gaps[-1] <= self.options.gap,
            },
        }


def streams(server, bodies):
    """Asks for all streams at once: tokens a second from the first token of any to the last of all; those that came
    while all were writing; seconds until all had begun; and tokens of the prompts."""
    results = [None] * len(bodies)
    together = threading.Barrier(len(bodies), timeout=60)

    def one(at):
        results[at] = server.stream(bodies[at], together=together)

    threads = [threading.Thread(target=one, args=(at,)) for at in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for status, _, times, last in results:
        if status != 200 or not times or not last:
            sys.exit(f"a stream was not answered whole: {status}")
    pieces = [times for _, _, times, _ in results]
    first, last_first = min(times[0] for times in pieces), max(times[0] for times in pieces)
    first_end, end = min(times[-1] for times in pieces), max(times[-1] for times in pieces)
    usage = [last["usage"] for _, _, _, last in results]
    # The first token of the first stream is where the time begins.
    written = sum(one["completion_tokens"] for one in usage) - 1
    meanwhile = sum(last_first < at <= first_end for times in pieces for at in times)
    return {"tokens_per_second": written / (end - first),
            "while_all_write": meanwhile / max(first_end - last_first, 1e-9),
            "seconds_to_all": max(seconds for _, seconds, _, _ in results),
            "prompt_tokens": sum(one["prompt_tokens"] for one in usage)}


def throughput(server, options):
    """Tokens a second of one stream, and of several whose prompts begin alike."""
    rng = random.Random(options.seed)
    shared = words_of(server, rng, options.document_tokens)

    def rate(count):
        bodies = [{"prompt": f"{shared} {words(rng, 6)}", "max_tokens": options.tokens, "ignore_eos": True,
                   "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
                  for _ in range(count)]
        return streams(server, bodies)["tokens_per_second"]

    rate(1)  # the shared beginning is read
    alone, together = rate(1), rate(options.streams)
    return {"streams": options.streams, "shared_tokens": options.document_tokens, "tokens": options.tokens,
            "one_stream_tokens_per_second": round(alone, 1),
            "together_tokens_per_second": round(together, 1), "times": round(together / alone, 2), "kept": {}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key")
    parser.add_argument("--program", help="start this longview, on the reference model, for the load")
    parser.add_argument("--memory", default="600MiB", help="what a program that is started may use")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--documents", type=int, default=6, help="long documents in all, at most")
    parser.add_argument("--document-tokens", type=int, default=4000)
    parser.add_argument("--gap", type=float, default=2.0, help="the longest gap allowed between tokens, in seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--streams", type=int, help="measure throughput with so many streams instead")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each stream, with --streams")
    options = parser.parse_args()
    host = urllib.parse.urlparse(options.url).hostname
    if host not in ("127.0.0.1", "localhost", "::1"):
        sys.exit("load is for a server on this machine only")
    with contextlib.ExitStack() as own:
        url = options.url
        if options.program:
            url = own.enter_context(serving(options.program, "--memory", options.memory)).url
        server = Server(url, options.key)
        report = throughput(server, options) if options.streams else Load(server, options).run()
    print(json.dumps(report, indent=1))
    sys.exit(0 if all(report["kept"].values()) else 1)


if __name__ == "__main__":
    main()
