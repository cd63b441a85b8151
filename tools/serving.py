"""A `longview serve` of a tool's own, which ends with it. Standard library only."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile


class Served:
    """A running server: its process, its URL, and the folder that it keeps things in."""

    def __init__(self, process, url, folder):
        self.process, self.url, self.folder = process, url, folder

    def end(self):
        """Asks it to end; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)


@contextlib.contextmanager
def serving(program, *arguments, keys=None):
    """A server on a free port, with a folder of its own; `arguments` are further ones of `longview serve`, and
    `keys` its API keys."""
    environment = {name: value for name, value in os.environ.items() if name != "LONGVIEW_API_KEYS"}
    if keys:
        environment["LONGVIEW_API_KEYS"] = keys
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [program, "--json", "serve", "--port", "0", "--cache-dir", folder, *arguments],
            stdout=subprocess.PIPE, env=environment, text=True)
        server = Served(process, None, folder)
        try:
            text = ""
            while not text.rstrip().endswith("}"):
                line = process.stdout.readline()
                if not line:
                    sys.exit("the server did not start")
                text += line
            server.url = json.loads(text)["urls"][0]
            yield server
        finally:
            server.end()
