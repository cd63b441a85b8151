#!/usr/bin/env python3
"""llama.cpp's own HTTP server (PyPI `xllamacpp`) in a process of its own, for comparisons.

Prints its URL and what it was compiled for as one JSON object, and serves until standard input closes.
"""

import argparse
import json
import sys

import xllamacpp


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens of all streams together")
    options = parser.parse_args()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = options.model
    parameters.n_ctx = options.context
    parameters.n_parallel = options.streams
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
    parameters.port = 0
    server = xllamacpp.Server(parameters)
    print(json.dumps({"url": server.listening_address, "version": f"xllamacpp {xllamacpp.__version__}; {xllamacpp.get_system_info()}"}))
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
