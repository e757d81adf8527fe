"""A small HTTP server that serves a model as OpenAI-compatible servers do, with what may go wrong on the way there."""

import threading
from typing import Any

from lupi_trainer.data.prompts import encode
from lupi_trainer.evaluation import generate_answers
from lupi_trainer.models.loading import load_model
from tests.documents.stand_in import StandIn


class LabServer(StandIn):
    """Serves the model of a name or folder.

    Args:
        name: a model, its chat template and its ends.
        eos: the tokens that it ends at, in place of its own.
        tokenizes: `"vllm"`, `"llama.cpp"`: in whose way it says the tokens of a prompt; else it does not.
        counts: whether a reply says how many tokens its prompt has.
    """

    def __init__(self, name: str, eos: int | None = None, tokenizes: str | None = "vllm", counts: bool = True):
        self.model, self.tokenizer = load_model(name, device="cpu")
        self.lock, self.counts, self.tokenizes = threading.Lock(), counts, tokenizes
        if eos is not None:
            self.model.generation_config.eos_token_id = self.tokenizer.eos_token_id = eos
        super().__init__(self.write, models=("served",))

    def prompt(self, body: dict[str, Any]) -> list[int]:
        return encode(self.tokenizer, [body["messages"]], **body.get("chat_template_kwargs", {}))[0]

    def write(self, body: dict[str, Any]) -> str:
        with self.lock:
            ((text, finished),) = generate_answers(
                self.model, self.tokenizer, [self.prompt(body)], max_new_tokens=body["max_tokens"]
            )
        return text if finished else f"{text}\0"

    def usage(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_tokens": len(self.prompt(body))} if self.counts else {}

    def other(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if self.tokenizes == "vllm" and path == "/tokenize":
            return {"tokens": self.prompt(body)}
        if self.tokenizes == "llama.cpp" and path == "/apply-template":
            return {"prompt": self.tokenizer.decode(self.prompt(body))}
        if self.tokenizes == "llama.cpp" and path == "/tokenize":
            return {"tokens": self.tokenizer(body.get("content", ""), add_special_tokens=False)["input_ids"]}
        return None
