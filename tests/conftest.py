"""What every test shares: no network, one thread (the models are tiny), and the lab's pair.

From the environment: `TEST_THREADS`, more threads; `TEST_SHUFFLE`, a seed for another order of files and tests;
`TEST_EXAMPLES`, how many odd inputs of each property are tried (tests/fuzz.py).
"""

import copy
import functools
import gc
import importlib.metadata
import inspect
import os
import random
import re
from pathlib import Path


THREADS = os.environ.get("TEST_THREADS", "1")
os.environ.update(
    CI="1",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    OMP_NUM_THREADS=THREADS,
    OMP_WAIT_POLICY="PASSIVE",  # where a test uses two threads, idle ones must not spin
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
)

# accelerate asks many times a step which packages there are, and each answer parses a file anew
for ask in ("metadata", "version"):
    setattr(importlib.metadata, ask, functools.cache(getattr(importlib.metadata, ask)))

# fixtures import transformers themselves: the process that hands out tests to others has no need of it
import warnings  # noqa: E402
import weakref  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from tests import forks  # noqa: E402
from tests.machines import describe  # noqa: E402
from tests.publishing.hub_stub import TOKENS, HubStub  # noqa: E402


torch.set_num_threads(int(THREADS))
ROOT = Path(__file__).parent.parent
VLLM, LLAMA_CPP = ROOT / ".venv-vllm" / "bin" / "vllm", ROOT / ".venv-served" / ".ready"

# what a test that compares numbers, or texts that follow from them, says
NUMERICAL = re.compile(r"\b(approx|assert_close|allclose|equal|assert_alike|reference_rollout)\(")


def pytest_report_header(config):
    return describe()


def pytest_terminal_summary(terminalreporter, exitstatus):
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        terminalreporter.section("machine")
        for line in describe():
            terminalreporter.write_line(line)


@functools.cache
def compares_numbers(test) -> bool:
    return bool(NUMERICAL.search(inspect.getsource(test)))


def sample_grids(items):
    """Of a test marked `grid(n)`, all cells but every n-th, drawn by the test's name, become slow."""
    grids: dict[str, list] = {}
    for item in items:
        if item.get_closest_marker("grid"):
            grids.setdefault(item.nodeid.split("[")[0], []).append(item)
    for name, cells in grids.items():
        (share,) = cells[0].get_closest_marker("grid").args
        kept = random.Random(name).sample(range(len(cells)), -(-len(cells) // share))
        for number, cell in enumerate(cells):
            if number not in kept:
                cell.add_marker(pytest.mark.slow)


def pytest_collection_modifyitems(items):
    sample_grids(items)
    for item in items:
        if compares_numbers(item.function):
            item.add_marker(pytest.mark.numerical)
    # two workers end together when the long ones come first, and those that ask for more time before all others
    items.sort(key=lambda item: ("slow" not in item.keywords, item.get_closest_marker("timeout") is None))
    if seed := os.environ.get("TEST_SHUFFLE"):
        noise = random.Random(seed)
        places = {path: noise.random() for path in sorted({item.path for item in items})}
        items.sort(key=lambda item: (places[item.path], noise.random()))  # a file's tests stay together
    for item in items:
        # marks, and not keywords, of which the names of folders are some
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("vllm") and not VLLM.exists():
            item.add_marker(pytest.mark.skip(reason="needs the server that `make test-vllm` sets up"))
        if item.get_closest_marker("served") and not LLAMA_CPP.exists():
            item.add_marker(pytest.mark.skip(reason="needs the server that `make test-serve` sets up"))


def pytest_collection_finish(session):
    # accelerate collects garbage after every training: what is imported by now stays, and need not be looked through
    gc.collect()
    gc.freeze()
    forks.start()


@pytest.fixture
def compiling(monkeypatch):
    """A compiled rollout that gives up fails the test, and what was compiled is forgotten after it."""
    from lupi_trainer.speculative.runners import steps as compiled

    monkeypatch.setattr(compiled, "_refused", weakref.WeakKeyDictionary())  # not what other tests have left there
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile=True")
        torch._dynamo.utils.counters.clear()
        yield
    torch._dynamo.reset()


@pytest.fixture
def tracing(compiling, monkeypatch):
    """As `compiling`, but the graphs run as they were captured: what is tested is that there is one, and when."""
    from lupi_trainer.speculative.runners import steps as compiled

    monkeypatch.setattr(compiled, "_BACKEND", "eager")
    compiled._compiled.cache_clear()
    yield
    compiled._compiled.cache_clear()


@functools.cache
def read_from_lab(auto: str, name: str):
    import transformers

    from lupi_trainer.lab import resolve_model

    return getattr(transformers, auto).from_pretrained(resolve_model(name))


def lab(auto: str, name: str):
    """A model or tokenizer of the lab, by the class of transformers that finds its kind: a copy of its own."""
    return copy.deepcopy(read_from_lab(auto, name))


@pytest.fixture
def tokenizer():
    return lab("AutoTokenizer", "lab:student")


@pytest.fixture
def student():
    return lab("AutoModelForCausalLM", "lab:student")


@pytest.fixture
def teacher():
    return lab("AutoModelForCausalLM", "lab:teacher")


@pytest.fixture
def small_lab(monkeypatch):
    """The lab's first islands alone: 48 records, or 20 questions, by each name."""
    import lupi_trainer.lab as named

    def first(name, make):
        return lambda: make()[: 20 if name.startswith("probes") else 48]

    monkeypatch.setattr(named, "_RECORDS", {name: first(name, make) for name, make in named._RECORDS.items()})


@pytest.fixture
def thinker(student, tokenizer, tmp_path) -> str:
    """The lab's student with a chat template that fails unless the flag `think` is false."""
    tokenizer.chat_template = "{% if think is not false %}{{ raise_exception('it thinks') }}{% endif %}" + (
        tokenizer.chat_template
    )
    student.save_pretrained(tmp_path / "thinker")
    tokenizer.save_pretrained(tmp_path / "thinker")
    return str(tmp_path / "thinker")


@pytest.fixture
def slow_thinker(student, tokenizer, tmp_path) -> str:
    """The lab's student with a template that closes a block where `enable_thinking` is false, as Qwen3's does."""
    tokenizer.chat_template += "{% if add_generation_prompt and enable_thinking is false %}<think></think>{% endif %}"
    student.save_pretrained(tmp_path / "slow_thinker")
    tokenizer.save_pretrained(tmp_path / "slow_thinker")
    return str(tmp_path / "slow_thinker")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for the Hub, and the Hub's client turned to it, with the token of one who may write."""
    from huggingface_hub import constants

    stub = HubStub()
    monkeypatch.setattr(constants, "ENDPOINT", stub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between a client's retries
    monkeypatch.setenv("HF_TOKEN", TOKENS["writer"])
    yield stub
    stub.close()
