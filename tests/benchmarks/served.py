"""`python -m tests.benchmarks.served`: a rollout whose teacher is on a vLLM server, over one whose teacher is here.

200 of the lab's questions, 32 at a time, gamma 10, in turns on one machine, each turn with texts of its own. "Each
prefix" asks as of a server without our middleware: a request a row and round, a prompt a drafted token. "A round" is
one request, a prompt a row. Texts must be equal. Beside the seconds: requests, prompts, and tokens that the server's
model reads, all of a committed token, the last from vLLM's own counters; processor seconds of all processes of the
server, which wait for one another by spinning, so that they are not its work alone.

    python -m tests.benchmarks.served
    python -m tests.benchmarks.served --server_flags "--block-size 32"    # a CPU has 128 by default, a GPU 16
"""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile
import time
from pathlib import Path
from unittest import mock

import httpx
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lupi_trainer import TeacherServer
from lupi_trainer.data.prompts import TeacherPrompt, encode
from lupi_trainer.lab import load_lab_records, resolve_model, world
from lupi_trainer.speculative import TopK, skd_rollout
from tests.benchmarks.measure import Others, ratio
from tests.vllm.server import Server


ROWS, LIMIT = 200, 40
COUNTERS = {"read": "vllm:prompt_tokens_total", "from the cache": "vllm:prefix_cache_hits_total"}


def lab_prompts(tokenizer) -> tuple[list[list[int]], list[list[int]]]:
    """The lab's questions as the student and as the teacher reads them."""
    records = load_lab_records("lab:mixed")
    records = records[:: len(records) // ROWS][:ROWS]
    asked = [[{"role": "user", "content": r["query"]}] for r in records]
    informed = [TeacherPrompt(world.PERSONA).messages(q, r["knowledge"]) for q, r in zip(asked, records)]
    return encode(tokenizer, asked), encode(tokenizer, informed)


def counters(server: Server) -> dict[str, float]:
    """Tokens of prompts so far, and those of them that were not read since they were in the cache."""
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    return {
        name: sum(float(line.split()[-1]) for line in lines if line.startswith((metric + "{", metric + " ")))
        for name, metric in COUNTERS.items()
    }


def processor_seconds(group: int) -> float:
    """Of all processes of a group so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        ticks += int(fields[11]) + int(fields[12]) if int(fields[2]) == group else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--server_flags", default="", help="of `vllm serve`, beside those of the tests")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    folders = {role: resolve_model(f"lab:{role}") for role in ("student", "teacher")}
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders.values())
    tokenizer = AutoTokenizer.from_pretrained(folders["student"])
    prompts, others = lab_prompts(tokenizer), Others()
    with tempfile.TemporaryDirectory() as logs:
        server = Server(Path(logs) / "server.log", more=shlex.split(args.server_flags)).wait()
        try:
            with mock.patch("lupi_trainer.teachers.vllm.PATH", "/v1/none"):  # a route that no server has
                prefixes = TeacherServer(server.url, tokenizer)
            # `begin` looks at the server, and at what it takes
            prefixes.begin = lambda: None
            teachers = {"here": teacher, "each prefix": prefixes, "a round": TeacherServer(server.url, tokenizer)}
            assert (prefixes._takes_rounds, teachers["a round"]._takes_rounds) == (False, True)
            turns = [_turn(turn, student, teachers, prompts, server) for turn in range(args.turns + 1)]
        finally:
            server.stop()
    seconds = {name: [turn[name] for turn in turns[1:]] for name in teachers}  # without the one to warm up
    for name in ("each prefix", "a round"):
        print(
            f"{name}: {ratio(seconds, name, 'here'):.2f} times the seconds of the teacher here, median of {args.turns}"
        )
    print(f"others used {others.share():.0%} of the machine, the server among them")


def _turn(seed: int, student, teachers: dict, prompts, server: Server) -> dict[str, float]:
    """Prints a line for each way of asking; returns the seconds."""
    seconds, texts = {}, {}
    for name in ["here", *(list(teachers)[1:] if seed % 2 else list(teachers)[:0:-1])]:  # the second finds more cached
        teacher = teachers[name]
        remote, before = isinstance(teacher, TeacherServer), (counters(server), processor_seconds(server.process.pid))
        read = teacher.stats.prompts if remote else 0
        started = time.perf_counter()
        rollout = skd_rollout(
            student,
            teacher,
            *prompts,
            max_new_tokens=LIMIT,
            gamma=10,
            eos_token_id=2,
            acceptance=TopK(5, 0.05),
            max_slots=32,
            seed=seed,
        )
        seconds[name], texts[name] = time.perf_counter() - started, rollout.completion_ids
        stats, figures = rollout.stats, ""
        if remote:
            tokens = {key: value - before[0][key] for key, value in counters(server).items()}
            figures = f", {seconds[name] / seconds['here']:.2f} times; of a committed token: "
            figures += f"{stats.teacher_requests / stats.committed:.3f} requests, "
            figures += f"{(teacher.stats.prompts - read) / stats.committed:.2f} prompts, "
            figures += f"{(tokens['read'] - tokens['from the cache']) / stats.committed:.1f} tokens read; "
            figures += f"{processor_seconds(server.process.pid) - before[1]:.1f} processor seconds of the server"
        print(f"turn {seed}, {name}: {seconds[name]:.2f} s{figures}", flush=True)
        assert texts[name] == texts["here"], "another text: an error, or a tie"
    return seconds


if __name__ == "__main__":
    main()
