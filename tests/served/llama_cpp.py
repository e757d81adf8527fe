"""Serves a GGUF file with llama.cpp, in the environment of `make test-serve`: llama_cpp.py FILE TOKENS TEMPLATE."""

import socket
import sys


def serve(gguf: str, length: str, template: str) -> None:
    """Serve until the standard input ends."""
    import xllamacpp  # of that environment alone

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.port = gguf, int(length), port
    params.n_parallel = params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.use_jinja, params.warmup = True, False
    if template:
        params.chat_template = template
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(*sys.argv[1:])
