#!/usr/bin/env python3
"""Random requests after the server's OpenAPI document (schemathesis): none may end in a 5xx or in a status that
the document does not know.

    python -m venv clients && clients/bin/pip install schemathesis
    clients/bin/python tools/check_schema.py target/debug/longview [--seconds 30]
"""

import argparse
import os
import subprocess
import sys
import tempfile

from serving import serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", default="target/release/longview")
    parser.add_argument("--seconds", type=int, default=30, help="how long requests are made")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    schemathesis = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    if not os.path.exists(schemathesis):
        print("skipped: schemathesis is not installed")
        return
    # Short prompts and answers: many requests are worth more than long ones.
    with serving(options.program, "--max-answer", "4", "--max-prompt", "2k", "--memory", "1GiB") as server, \
            tempfile.TemporaryDirectory() as scratch:
        ran = subprocess.run([
            schemathesis, "run", f"{server.url}/openapi.json", "--checks", CHECKS, "--max-time", str(options.seconds),
            "--phases", "examples,coverage,fuzzing", "--seed", str(options.seed), "--request-timeout", "60",
            # Python 3.11 counts the recursion of two threads that compile together as one's, and fails.
            "--workers", "1",
            # Its body is a tar file, which schemathesis does not make; the tests of the server send it random bytes.
            "--exclude-path", "/v1/contexts/import", "--suppress-health-check", "all", "--warnings", "off", "--no-color"], cwd=scratch)
        ended = server.end()
    if ran.returncode or ended:
        sys.exit(f"schemathesis ended with {ran.returncode}, the server with {ended}")


if __name__ == "__main__":
    main()
