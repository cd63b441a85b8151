"""A peer engine in a process of its own, so that its memory can be told from ours: both ends of the pipe.

The process reads one request a line, `{"kind": "prefill", "tokens": 512, "passes": 2}`, and answers each with
`{"tokens_per_second": …, "peak_bytes": …, "version": …}`. The peak is that of the process less what Python and its
packages took before the engine was opened.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any


def serve(open_peer: Callable[[], Any]) -> None:
    """Answer requests until the pipe closes. A peer has `version` and `measure(kind, tokens, passes) -> seconds`."""
    before = memory("VmRSS")
    peer = open_peer()
    for line in sys.stdin:
        request = json.loads(line)
        seconds = peer.measure(request["kind"], request["tokens"], request["passes"])
        answer = {
            "tokens_per_second": request["tokens"] / seconds,
            "peak_bytes": memory("VmHWM") - before,
            "version": peer.version,
        }
        print(json.dumps(answer), flush=True)


def memory(field: str) -> int:
    """Bytes of this process, as /proc says."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}")


class PeerProcess:
    """The other end: a process that serves one peer."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, kind: str, tokens: int, passes: int) -> dict[str, Any]:
        request = {"kind": kind, "tokens": tokens, "passes": passes}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{' '.join(self.command)} ended with code {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
