"""A loopback server that answers as a vLLM server does: a stand-in for the wire, not for the model.

The model is a real one, run by transformers; the JSON has the fields that vLLM 0.32 sends and this package reads.
"""

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from lupi_trainer.teachers.vllm_scores import PATH


class Refused(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str):
        self.status, self.message = status, message


class VLLMStandIn:
    """Serves a model at `url`; `faults` are done to the next completion requests, one each.

    A fault is a status (503), "drop" (the connection closes without an answer), "hang" (no answer for `hang_s`),
    "garbage" (no JSON) or "empty" (JSON without the fields). `names` are what it calls the model. With `together`,
    a `threading.Barrier`, no completion is answered before as many requests as it has parties are there. With
    `scores` it answers as one that was started with our middleware.
    """

    def __init__(
        self,
        model,
        tokenizer,
        names=("teacher",),
        max_logprobs=20,
        max_model_len=512,
        port=0,
        hang_s=1.0,
        scores=False,
    ):
        self.scores = scores
        self.model, self.tokenizer, self.names = model.eval(), tokenizer, list(names)
        self.max_logprobs = max_logprobs if max_logprobs >= 0 else model.config.vocab_size
        self.max_model_len, self.hang_s = max_model_len, hang_s
        self.faults, self.key, self.change, self.together = [], None, None, None
        self.requests = []
        self._lock, self._connections = threading.Lock(), []
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:  # those kept alive, too
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    # What vLLM would do

    def models(self):
        card = {"object": "model", "max_model_len": self.max_model_len, "root": "/models/" + self.names[0]}
        return {"object": "list", "data": [{"id": name, **card} for name in self.names]}

    def complete(self, body):
        if body["model"] not in self.names:
            raise Refused(404, f"The model `{body['model']}` does not exist.")
        prompts = body["prompt"]
        if isinstance(prompts, str):
            prompts = [self.tokenizer(prompts, add_special_tokens=body.get("add_special_tokens", True))["input_ids"]]
        elif isinstance(prompts[0], int):
            prompts = [prompts]
        for name in ("prompt_logprobs", "logprobs"):
            if (body.get(name) or 0) > self.max_logprobs:
                kind = name.replace("_", " ") if name == "prompt_logprobs" else "sample logprobs"
                raise Refused(
                    400, f"Requested {kind} of {body[name]}, which is greater than max allowed: {self.max_logprobs}"
                )
        if (asked := len(body.get("logprob_token_ids") or ())) > 128:
            raise Refused(
                400, f"Requested logprob_token_ids of length {asked}, which is greater than max allowed: 128"
            )
        for prompt in prompts:
            if max(prompt) >= self.model.config.vocab_size:
                raise Refused(400, f"Token id {max(prompt)} is out of vocabulary")
            if len(prompt) >= self.max_model_len:
                raise Refused(400, f"This model's maximum context length is {self.max_model_len} tokens.")
        width = max(map(len, prompts))
        with self._lock, torch.no_grad():
            logits = self.model(torch.tensor([p + [0] * (width - len(p)) for p in prompts])).logits.float()
        choices = []
        for i, prompt in enumerate(prompts):
            scores = logits[i, : len(prompt)].log_softmax(-1)
            scores = scores if self.change is None else self.change(scores, body)
            choice = {"index": i, "text": "", "logprobs": None, "finish_reason": "length", "prompt_logprobs": None}
            choice["prompt_token_ids"] = prompt if body.get("return_token_ids") else None
            if body.get("prompt_logprobs") is not None:
                choice["prompt_logprobs"] = [None] + [
                    self._ranked(row, token, body["prompt_logprobs"]) for row, token in zip(scores, prompt[1:])
                ]
            if body["max_tokens"] > 1:
                choice["logprobs"] = self._written(prompt, body)
            elif body.get("logprobs") is not None:
                choice["logprobs"] = self._sampled(scores[-1], body)
            choices.append(choice)
        choices.reverse()  # nothing promises their order
        return {"object": "text_completion", "model": body["model"], "choices": choices}

    def score(self, body):
        """What the middleware answers, of each prompt by itself."""
        choices = []
        for index, (text, count) in enumerate(zip(body["prompt"], body["counts"], strict=True)):
            alone = {"model": body["model"], "prompt": [*text, text[-1]], "prompt_logprobs": body["logprobs"]}
            (choice,) = self.complete({**alone, "max_tokens": 1})["choices"]
            tops = []
            for place in choice["prompt_logprobs"][-count:]:  # the prompt's own token among them is left out
                likeliest = sorted(place.items(), key=lambda item: -item[1]["logprob"])[: body["logprobs"]]
                tops.append({token: entry["logprob"] for token, entry in likeliest})
            choices.append({"index": index, "logprobs": {"top_logprobs": tops}})
        return {"choices": choices}

    def _ranked(self, row, token, top):
        ids = dict.fromkeys([token, *row.topk(top).indices.tolist()])
        return {
            str(i): {"logprob": row[i].item(), "rank": int((row >= row[i]).sum()), "decoded_token": "?"} for i in ids
        }

    def _sampled(self, row, body):
        best = int(row.argmax())
        ids = body.get("logprob_token_ids") or row.topk(body["logprobs"]).indices.tolist()
        top = {f"token_id:{i}": row[i].item() for i in dict.fromkeys([best, *ids])}
        return {"tokens": [f"token_id:{best}"], "token_logprobs": [row[best].item()], "top_logprobs": [top]}

    def _written(self, prompt, body):
        """As vLLM samples from a model that has no generation config, and reports raw log-probabilities."""
        assert body["top_k"] == -1 and body["top_p"] == body["repetition_penalty"] == 1.0 and body["ignore_eos"]
        noise, ids = torch.Generator().manual_seed(body["seed"]), []
        parts = {"tokens": [], "token_logprobs": [], "top_logprobs": []}
        while len(ids) < body["max_tokens"] and not (ids and ids[-1] in body["stop_token_ids"]):
            with self._lock, torch.no_grad():
                scores = self.model(torch.tensor([[*prompt, *ids]])).logits[0].float().log_softmax(-1)
            scores = (scores if self.change is None else self.change(scores, body))[-1]
            odds = (scores / body["temperature"]).softmax(-1)
            ids.append(int(torch.multinomial(odds, 1, generator=noise)))
            top = dict.fromkeys([ids[-1], *scores.topk(body["logprobs"]).indices.tolist()])
            parts["tokens"].append(f"token_id:{ids[-1]}")
            parts["token_logprobs"].append(scores[ids[-1]].item())
            parts["top_logprobs"].append({f"token_id:{i}": scores[i].item() for i in top})
        return parts

    # The wire

    def _handler(stand_in):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                stand_in._connections.append(self.connection)

            def do_GET(self):
                self._answer(200, stand_in.models()) if self.path == "/v1/models" else self._answer(404, {})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stand_in._lock:
                    stand_in.requests.append(body)
                    fault = stand_in.faults.pop(0) if stand_in.faults else None
                if stand_in.together is not None:
                    with contextlib.suppress(threading.BrokenBarrierError):
                        stand_in.together.wait()
                if fault == "drop":
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault == "hang":
                    time.sleep(stand_in.hang_s)
                if stand_in.key and self.headers["Authorization"] != f"Bearer {stand_in.key}":
                    return self._answer(401, {"error": "Unauthorized"})
                if isinstance(fault, int):
                    return self._answer(fault, {"error": {"message": "not now"}})
                if fault == "garbage":
                    return self._answer(200, "<html>a proxy</html>")
                if fault == "empty":
                    return self._answer(200, {"choices": [{"index": 0}]})
                try:
                    if self.path == PATH and not stand_in.scores:
                        raise Refused(404, "Not Found")
                    self._answer(200, (stand_in.score if self.path == PATH else stand_in.complete)(body))
                except Refused as refused:
                    self._answer(refused.status, {"error": {"message": refused.message}})

            def _answer(self, status, content):
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # whoever asked has gone
                    self.close_connection = True

            def log_message(self, *_):
                pass

        return Handler
