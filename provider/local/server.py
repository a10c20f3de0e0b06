"""The one server of all local models: `python -m provider.local.server FOLDER`. OpenAI's chat completions, on loopback.

With `--foreground` it takes the place of one that runs in the background, and stays until it is told to end.

It loads a model with its first question and unloads it when no deployment serves it any more, and ends when nothing is
deployed. Web pages may not use it: a foreign `Host` or `Origin` is refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from provider.local.folder import Folder
from provider.local.process import detach, hold
from storage.files import write_atomic

if TYPE_CHECKING:
    from learners.completion import LearnerCompletion
    from learners.model import TrainedModel

_IDLE_SECONDS = 30.0
_MAX_TOKENS = 2_048
_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class Refusal(Exception):
    """An answer that is not 200: its status and what it says."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Models:
    """The models that are deployed, each loaded once. Threads may share it."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._loaded: dict[str, TrainedModel | Any] = {}
        self._names: dict[str, str] = {}
        self._seen: tuple[int, int] | None = None
        self._lock = threading.Lock()

    def served(self) -> dict[str, str]:
        """The folder's name of the model that answers for each endpoint; read again when it changed."""
        try:
            stat = self._folder.serving.stat()
        except FileNotFoundError:
            return {}
        if (seen := (stat.st_mtime_ns, stat.st_ino)) != self._seen:
            names = {}
            for endpoint in self._folder.read_endpoints().values():
                chosen = endpoint.find(endpoint.traffic) if endpoint.traffic else None
                if chosen is not None and chosen.replicas:
                    names[endpoint.name] = chosen.model
            with self._lock:
                self._names, self._seen = names, seen
                for gone in set(self._loaded) - set(self.deployed()):
                    del self._loaded[gone]
        return self._names

    def deployed(self) -> set[str]:
        """Names of all models that a deployment has a replica of, with traffic or without."""
        return {
            each.model
            for endpoint in self._folder.read_endpoints().values()
            for each in endpoint.deployments
            if each.replicas
        }

    def load(self, name: str) -> TrainedModel | Any:
        """The model in that folder. Raises Refusal where it cannot be used."""
        with self._lock:
            if name not in self._loaded:
                from learners.errors import LearnerError
                from learners.model import load_model

                try:
                    self._loaded[name] = load_model(self._folder.model(name))
                except LearnerError as error:
                    raise Refusal(503, str(error)) from error
            return self._loaded[name]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request for a completion, as far as it counts here."""

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int
    logprobs: bool
    stream: bool

    @classmethod
    def read(cls, body: bytes) -> ChatRequest:
        """Raises Refusal with what is wrong."""
        try:
            given = json.loads(body)
            model, messages = given["model"], given["messages"]
        except (ValueError, TypeError, KeyError) as error:
            raise Refusal(400, "a JSON object with `model` and `messages` is needed") from error
        if not isinstance(model, str) or not isinstance(messages, list) or not messages:
            raise Refusal(400, "`model` must be text, `messages` a list with at least one message")
        if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
            raise Refusal(400, "every message must be an object with a `role`")
        limit = given.get("max_completion_tokens") or given.get("max_tokens") or _MAX_TOKENS
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise Refusal(400, f"`max_tokens` must be a whole number from 1, not {limit!r}")
        return cls(model, messages, limit, bool(given.get("logprobs")), bool(given.get("stream")))


def write_whole(question: ChatRequest, completion: LearnerCompletion) -> dict[str, Any]:
    """A completion as OpenAI writes it."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": completion.text},
        "logprobs": _logprobs(completion.tokens, completion.token_logprobs, completion.alternatives)
        if question.logprobs
        else None,
        "finish_reason": completion.finish_reason,
    }
    return {**_head(question, "chat.completion"), "choices": [choice], "usage": _usage(completion)}


async def write_events(question: ChatRequest, completion: LearnerCompletion) -> AsyncIterator[bytes]:
    """A completion as server-sent events: a token each, then the finish, then the usage."""
    head = _head(question, "chat.completion.chunk")
    given = completion.token_logprobs if question.logprobs else [None] * len(completion.tokens)
    alternatives = completion.alternatives or [{}] * len(completion.tokens)
    for token, logprob, others in zip(completion.tokens, given, alternatives, strict=True):
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": token},
            "logprobs": None if logprob is None else _logprobs([token], [logprob], [others]),
            "finish_reason": None,
        }
        yield _event({**head, "choices": [choice]})
    yield _event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": completion.finish_reason}]})
    yield _event({**head, "choices": [], "usage": _usage(completion)})
    yield b"data: [DONE]\n\n"


def _head(question: ChatRequest, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": question.model}


def _usage(completion: LearnerCompletion) -> dict[str, int]:
    prompt, output = completion.prompt_tokens, len(completion.tokens)
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _logprobs(
    tokens: list[str], given: list[float], alternatives: Sequence[Mapping[str, float]] = ()
) -> dict[str, Any]:
    """Of each token its log-probability and those of its alternatives: all of a question's options, however many."""
    rows = [
        {**_logprob(token, logprob), "top_logprobs": [_logprob(*other) for other in others.items()]}
        for token, logprob, others in zip(tokens, given, alternatives or [{}] * len(tokens), strict=True)
    ]
    return {"content": rows}


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def make_app(folder: Folder) -> Any:
    """The ASGI application."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    models = Models(folder)
    # One thread: the models are small and hold the interpreter's lock, so more would make every answer later.
    pool = ThreadPoolExecutor(1, thread_name_prefix="models")

    async def in_pool(call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)

    def answer(question: ChatRequest) -> LearnerCompletion:
        name = models.served().get(question.model)
        if name is None:
            raise Refusal(404, f"no deployment answers for {question.model!r}; `reasoning deploy` starts one")
        completion: LearnerCompletion = models.load(name).complete(question.messages, max_tokens=question.max_tokens)
        return completion

    def refuse_pages(request: Request) -> None:
        host = request.headers.get("host", "")
        if host.rpartition(":")[0] not in _HOSTS and host not in _HOSTS:
            raise Refusal(403, "this Host is not served here")
        if request.headers.get("origin") not in (None, f"http://{host}"):
            raise Refusal(403, "a web page of another origin may not ask this server")

    async def complete(request: Request) -> Response:
        refuse_pages(request)
        question = ChatRequest.read(await request.body())
        completion = await in_pool(answer, question)
        if question.stream:
            return StreamingResponse(write_events(question, completion), media_type="text/event-stream")
        return JSONResponse(write_whole(question, completion))

    async def names(request: Request) -> Response:
        refuse_pages(request)
        rows = [{"id": name, "object": "model", "owned_by": "local"} for name in sorted(models.served())]
        return JSONResponse({"object": "list", "data": rows})

    async def health(request: Request) -> Response:
        refuse_pages(request)
        if name := request.query_params.get("model"):
            await in_pool(models.load, name)
        return JSONResponse({"folder": str(folder.path)})

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return JSONResponse({"error": {"message": str(error), "type": "refused"}}, status_code=error.status)

    routes = [
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/v1/models", names),
        Route("/health", health),
    ]
    return Starlette(routes=routes, exception_handlers={Refusal: refuse})


def _bind(folder: Folder) -> socket.socket:
    """A socket at the port that the server had before, so that routes keep their address; at another if it is taken."""
    try:
        before = int(json.loads(folder.server.read_bytes())["port"])
    except (OSError, ValueError, KeyError, TypeError):
        before = 0
    for port in dict.fromkeys((before, 0)):
        # With its protocol named: asyncio sets TCP_NODELAY on no other, and each answer waits 40 ms for an ACK.
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(("127.0.0.1", port))
        except OSError:
            bound.close()
            if not port:
                raise
            continue
        return bound
    raise AssertionError("port 0 is free or the loop raises")


async def _serve(folder: Folder, *, stays: bool) -> None:
    import uvicorn

    bound = _bind(folder)
    server = uvicorn.Server(uvicorn.Config(make_app(folder), log_level="warning", access_log=False))
    write_atomic(folder.server, json.dumps({"port": bound.getsockname()[1], "pid": os.getpid()}).encode())
    models, empty_since = Models(folder), time.monotonic()
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    while not serving.done():
        await asyncio.sleep(1)
        if stays or models.deployed():
            empty_since = time.monotonic()
        elif time.monotonic() - empty_since > _IDLE_SECONDS:
            server.should_exit = True
    await serving


def main() -> int:
    """Serve until nothing is deployed any more."""
    folder, stays = Folder(Path(sys.argv[1])), "--foreground" in sys.argv[2:]
    lock = _take_over(folder) if stays else detach(folder.server_lock)
    if lock is None:
        return int(stays)  # there is one
    with lock:
        asyncio.run(_serve(folder, stays=stays))
    return 0


def _take_over(folder: Folder) -> IO[bytes] | None:
    """Hold the server's lock, which one in the background gives up when it is asked to; None where it does not."""
    for _ in range(20):
        if (lock := hold(folder.server_lock)) is not None:
            return lock
        with suppress(OSError, ValueError, KeyError, TypeError):
            os.kill(json.loads(folder.server.read_bytes())["pid"], signal.SIGTERM)
        time.sleep(0.5)
    print(f"another server holds {folder.server_lock} and does not end", file=sys.stderr)
    return None


if __name__ == "__main__":
    sys.exit(main())
