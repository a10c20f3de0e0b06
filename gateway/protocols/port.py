"""What a protocol is: one object that says all that is particular to the API of one company.

The gateway knows no company. It loops over `gateway.protocols.PROTOCOLS`, and adding an API is adding one `Protocol`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.protocols.answers import OwnAnswer, UpstreamAnswer
from gateway.protocols.forced import ForcedForm, Turn
from gateway.protocols.questions import TextPrompt
from reasoning.serving.decision_wires import DecisionWire

MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Operation:
    """A POST of a protocol that asks a model, and whose answer we can read and write.

    `path` matches the whole path. `name` is the tag `door` of its records, `route` its label in the metrics.
    `question` returns what a request asks for in words; None for one that no model of ours may answer.
    `read` takes a body and its content type and raises `ModelAnswerError`; `write` returns content type and body.
    `forced` returns the tool or schema that a request forces, and `turns` its conversation as text, None where it has
    more than text. Both are None for an operation that forces nothing.
    `needs_query` has to stand in the query: without it the upstream answers in a form that `write` does not write.
    The group `model` of `path` is the model, where it does not stand in the body.
    `genai` is what OpenTelemetry's GenAI conventions call it.
    `may_be_coding`: its requests are Anthropic Messages in form, and the coding model may answer them.
    """

    name: str
    route: str
    path: re.Pattern[bytes]
    question: Callable[[Mapping[str, Any]], TextPrompt | None]
    read: Callable[[bytes, str], UpstreamAnswer]
    write: Callable[[OwnAnswer, Mapping[str, Any]], tuple[bytes, bytes]]
    may_be_coding: bool = False
    forced: Callable[[Mapping[str, Any]], ForcedForm | None] | None = None
    turns: Callable[[Mapping[str, Any]], list[Turn] | None] | None = None
    needs_query: bytes = b""
    genai: str = "chat"

    def model(self, path: bytes, request: Mapping[str, Any]) -> object:
        """The model that a request asks for, by its path where that names it."""
        match = self.path.fullmatch(path)
        named = match.groupdict().get("model") if match else None
        return request.get("model") if named is None else named.decode("latin-1")


@dataclass(frozen=True, slots=True)
class TypedOperation:
    """A POST of a protocol that asks typed questions. `name` is its label and tag, `path` matches the whole path."""

    name: str
    path: re.Pattern[bytes]
    wire: DecisionWire


@dataclass(frozen=True, slots=True)
class OpenApiPath:
    """A path in the gateway's own description. `decided`: our models may answer it."""

    path: str
    summary: str
    method: str = "post"
    decided: bool = False


@dataclass(frozen=True, slots=True)
class Protocol:
    """The API of one company.

    Where it is: `name` (settings, metrics, keys), `title` (messages), `url` (the upstream by default). The API key for
    it is read from `<NAME>_API_KEY`, its upstreams from `[[gateway.<name>]]`.

    What is its own: `roots` are the path prefixes it has (`/v1/messages`, `/v1beta`; a root of two protocols is
    shared), `aliases` other spellings of a path, `administration` the roots that need a pattern naming them,
    `model_paths` the patterns that a key may use by default, `repeatable` the paths of which a lost POST may be sent
    again, `large_bodies` path prefixes with a larger limit in bytes.

    Who may be sent its credential: `key_headers`, the headers of its key, the preferred one first; strong marks are
    `secret` (the shape of its keys; `secret_hints` are lower-case texts, one of which every such key contains),
    `header_prefixes` and `header_names`; weak ones are `weak_key_prefix` of a bearer token, `weak_headers` and
    `agents` (parts of a user agent, lower case). At `any_key_roots` keys of any shape are
    taken, because other servers speak the protocol there.

    `error` writes an error body: (status, type, message, request id) to (status, body). `type` is one of the types of
    `gateway.errors.RequestRefused`.
    """

    name: str
    title: str
    url: str
    roots: frozenset[bytes]
    key_headers: tuple[bytes, ...]
    secret: re.Pattern[bytes]
    secret_hints: tuple[bytes, ...]
    error: Callable[[int, str, str, str | None], tuple[int, bytes]]
    model_paths: tuple[str, ...]
    operations: tuple[Operation, ...] = ()
    typed: tuple[TypedOperation, ...] = ()
    repeatable: re.Pattern[bytes] = re.compile(rb"(?!)")
    aliases: Mapping[bytes, bytes] = field(default_factory=dict)
    administration: frozenset[bytes] = frozenset()
    large_bodies: tuple[tuple[bytes, int], ...] = ()
    header_prefixes: tuple[bytes, ...] = ()
    header_names: frozenset[bytes] = frozenset()
    weak_headers: frozenset[bytes] = frozenset()
    weak_key_prefix: bytes | None = None
    agents: tuple[bytes, ...] = ()
    any_key_roots: frozenset[bytes] = frozenset()
    described: tuple[OpenApiPath, ...] = ()
    genai_provider: str = ""
    """The provider's name in OpenTelemetry's GenAI conventions, where it is not `name`."""
    fallback_key_header: bytes | None = None
    """Where our key goes when the client's token came in a header of no protocol. Default: the first of its own."""

    def key_header(self, own: frozenset[bytes]) -> bytes:
        """The header for the operator's key, where the client's own token stood in the headers `own`."""
        for name in self.key_headers:
            if name in own:
                return name
        return self.fallback_key_header or self.key_headers[0]

    def operation(self, path: bytes) -> Operation | None:
        """The operation that a POST to `path` is."""
        for operation in self.operations:
            if operation.path.fullmatch(path):
                return operation
        return None

    def typed_operation(self, path: bytes) -> TypedOperation | None:
        """The typed questions that a POST to `path` asks."""
        return next((operation for operation in self.typed if operation.path.fullmatch(path)), None)


def roots(*names: str) -> frozenset[bytes]:
    """The roots `/v1/<name>`."""
    return frozenset(b"/v1/" + name.encode() for name in names)
