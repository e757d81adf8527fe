"""A server to ask, and what is asked about."""

import pytest

from lupi_trainer.data.prompts import TeacherPrompt, encode
from lupi_trainer.lab import load_lab_records, world
from tests.teachers.vllm_stand_in import VLLMStandIn


ROWS = 6


@pytest.fixture(params=["stock", "ours"])
def server(request, teacher, tokenizer):
    """A server as vLLM is, and one that was started with our middleware."""
    with VLLMStandIn(teacher, tokenizer, scores=request.param == "ours") as stand_in:
        yield stand_in


@pytest.fixture
def prompts(tokenizer):
    records = load_lab_records("lab:new")[:ROWS]
    prompt = TeacherPrompt(world.PERSONA)
    asked = [[{"role": "user", "content": r["query"]}] for r in records]
    informed = [prompt.messages(q, r["knowledge"]) for q, r in zip(asked, records)]
    return encode(tokenizer, asked), encode(tokenizer, informed)
