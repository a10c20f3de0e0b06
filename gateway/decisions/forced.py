"""Forced tools and JSON schemas as decisions: recognised by their form, learned, and answered as the client expects.

A request is a decision when it forces its answer's form (`gateway.protocols.forced`) and every required field of that
form decides (`gateway.decisions.schema_fields`), or when it may only choose among tools without arguments. A form that
also requires free fields, such as a text, is a decision only where `[[gateway.forced]]` names it::

    [[gateway.forced]]
    tool = "HANDLE_RESPONSE"                        # the tool's or the schema's name
    when = { shouldRespond = ["IGNORE", "STOP"] }   # decisions that a model may answer; without it all of them
    fields = { replyText = "", contexts = [] }      # what its answer then has in the free fields

Without `fields` such a form is logged and learned, and the upstream answers. The first table whose `when` holds counts.
A decision of a model that no table completes is on record with the reason `needs_text`, and the upstream answers.

The decision type is known by the form and the instructions: `<name>_<hash of both>_<hash of the questions>`. Numbers
and UUIDs in the instructions do not count, so that a date in them makes no new type; the model sees the numbers beside
the conversation. A type begins with the second request that has it (`forced_after`), so that a prompt that is never the
same twice makes none. `[gateway.decisions] forced = false` and `forced = false` of a key switch all of this off.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.decisions.instructions import Instructions
from gateway.decisions.schema_fields import DecidingField, SchemaFields, read_schema
from gateway.errors import GatewayConfigError
from gateway.ops.logs import log
from gateway.protocols.answers import UpstreamAnswer
from gateway.protocols.forced import ForcedForm, Form, Turn
from gateway.protocols.port import Operation
from reasoning.decision_types import DecisionType
from reasoning.errors import InvalidQuestions, UnparseableAnswer
from reasoning.io.bounded import load_bounded
from reasoning.questions import TypedQuestion, choice

MAX_TYPES = 500
"""So many types of forced decisions are told apart by one process; requests of further ones pass on."""
_MAX_STATE = 200_000
_MAX_FORM = 64 << 10
_REMEMBERED = 512
_SEEN = 4096
_TELLING = 24
_CHOICE_OF_TOOL = "tool"

UNREADABLE = (TypeError, AttributeError, KeyError, ValueError, RecursionError)
"""What a malformed request may raise where it is read: only the upstream can say what is wrong with it."""
_TypeKey = tuple[bytes, str]
"""The digests of a form and of its instructions."""
MakeType = Callable[[Mapping[str, TypedQuestion], str], DecisionType]
"""Makes the decision type of named questions (`reasoning.core.ClientCore.question_type`)."""


@dataclass(frozen=True, slots=True)
class Template:
    """A table of `[[gateway.forced]]`."""

    tool: str
    when: Mapping[str, tuple[bytes, ...]]
    fields: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class ForcedType:
    """A form and the questions that it comes down to. `fields` is None for a choice of tool."""

    kind: DecisionType
    form: ForcedForm
    fields: SchemaFields | None
    templates: tuple[Template, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """The tools that may be called."""
        return frozenset(form.name for form in self.form.forms)

    def read(self, said: UpstreamAnswer) -> dict[str, Any]:
        """The decision in an upstream's answer. Raises `UnparseableAnswer`."""
        if not self.form.as_tool:
            if said.tool_calls:
                raise UnparseableAnswer("the answer calls a tool where a JSON answer is wanted")
            return self._read_fields(said.text)
        if len(said.tool_calls) != 1 or said.tool_calls[0]["name"] not in self.names:
            raise UnparseableAnswer(f"{len(said.tool_calls)} tool calls, or not of the forced tool")
        call = said.tool_calls[0]
        return {_CHOICE_OF_TOOL: call["name"]} if self.fields is None else self._read_fields(call["arguments"])

    def _read_fields(self, arguments: Any) -> dict[str, Any]:
        if isinstance(arguments, str):
            try:
                arguments = load_bounded(arguments.encode())
            except ValueError:
                raise UnparseableAnswer("the arguments are not JSON") from None
        assert self.fields is not None
        return {field.name: _decided(field, arguments) for field in self.fields.deciding}

    def complete(self, decision: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
        """Name and arguments of the call that says `decision`; None where free fields are missing."""
        if self.fields is None:
            return str(decision[_CHOICE_OF_TOOL]), {}
        arguments: dict[str, Any] = {}
        for path, value in self.fields.fixed:
            _put(arguments, path, value)
        for field in self.fields.deciding:
            value = decision[field.name]
            _put(arguments, field.path, field.values[value if isinstance(value, str) else orjson.dumps(value).decode()])
        if self.fields.free or self.fields.optional or self.templates:
            template = next((each for each in self.templates if _holds(each, arguments)), None)
            if template is None or template.fields is None:
                return None
            arguments = _merge(arguments, template.fields)
        if any(_missing(arguments, path) for path in self.fields.free):
            return None
        return self.form.forms[0].name, arguments


@dataclass(frozen=True, slots=True)
class ForcedDecision:
    """A request that is a decision: its type, what it is decided on, and what tells its conversation from others."""

    type: ForcedType
    context: dict[str, Any]
    marks: tuple[str, ...]
    named: bool = False
    """Does the request name its tool?"""


class ForcedTypes:
    """The forced decisions of one gateway. `make_type` is asked once a type, when `after` requests had it: a prompt
    that is never the same twice makes no types."""

    def __init__(
        self, templates: Sequence[Template] = (), make_type: MakeType | None = None, *, after: int = 1
    ) -> None:
        self._after = after
        self._seen: OrderedDict[_TypeKey, int] = OrderedDict()
        self._templates = templates
        self._make_type = make_type
        self._forms: OrderedDict[bytes, _FormQuestions | None] = OrderedDict()
        self._instructions = Instructions()
        self._types: dict[_TypeKey, ForcedType | None] = {}

    def find(self, operation: Operation, request: Mapping[str, Any]) -> ForcedDecision | None:
        """The decision that a request forces; None for every other request, and for one that cannot be read."""
        try:
            return self._find(operation, request)
        except UNREADABLE:
            return None

    def _find(self, operation: Operation, request: Mapping[str, Any]) -> ForcedDecision | None:
        forced = operation.forced(request) if operation.forced is not None else None
        if forced is None or (read := self._questions(forced)) is None:
            return None
        turns = operation.turns(request) if operation.turns is not None else None
        if turns is None or sum(len(turn.text) for turn in turns) > _MAX_STATE:
            return None
        said = [turn for turn in turns if turn.role != "system" and turn.text.strip()]
        masked = self._instructions.mask("\n\n".join(turn.text for turn in turns if turn.role == "system"))
        kind = self._type(forced, read, masked.digest)
        if kind is None or not said:
            return None
        numbers = [Turn("numbers in the instructions", masked.numbers)] if masked.numbers else []
        shown = [*numbers, *said]
        state = [{"role": turn.role, "content": turn.text} for turn in shown]
        return ForcedDecision(kind, {"state": state}, _marks(said), forced.named)

    def _questions(self, forced: ForcedForm) -> _FormQuestions | None:
        try:
            key = orjson.dumps([forced.as_tool, *((f.name, f.description, f.schema) for f in forced.forms)])
        except TypeError:
            return None
        if len(key) > _MAX_FORM:
            return None
        if key not in self._forms:
            self._forms[key] = _read_form(forced, key, self._templates)
            if len(self._forms) > _REMEMBERED:
                self._forms.popitem(last=False)
        return self._forms[key]

    def _type(self, forced: ForcedForm, read: _FormQuestions, instructions: str) -> ForcedType | None:
        if (key := (read.digest, instructions)) not in self._types:
            if len(self._types) >= MAX_TYPES or not self._is_repeated(key):
                return None
            slug = re.sub(r"[^A-Za-z0-9]+", "_", forced.forms[0].name).strip("_")[:40] if read.fields else "choose_tool"
            name = f"{slug if slug[:1].isalpha() else f'tool_{slug}'}_{_hash(key)}"
            self._types[key] = self._made(forced, read, name)
            if len(self._types) == MAX_TYPES:
                log.warning("%d types of forced decisions are known; requests of further ones pass on", MAX_TYPES)
        return self._types[key]

    def _is_repeated(self, key: _TypeKey) -> bool:
        seen = self._seen[key] = self._seen.pop(key, 0) + 1
        if len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        return seen >= self._after

    def _made(self, forced: ForcedForm, read: _FormQuestions, name: str) -> ForcedType | None:
        try:
            kind = make_type(read.questions, name) if (make_type := self._make_type) else _made_up(read, name)
        except InvalidQuestions as error:
            log.warning("a forced decision cannot be asked as typed questions: %s", error)
            return None
        return ForcedType(kind, forced, read.fields, read.templates)


@dataclass(frozen=True, slots=True)
class _FormQuestions:
    questions: Mapping[str, TypedQuestion]
    fields: SchemaFields | None
    templates: tuple[Template, ...]
    digest: bytes


def _made_up(read: _FormQuestions, name: str) -> DecisionType:
    from reasoning.decision_types import questions_type
    from reasoning.questions import question_set

    return questions_type(question_set(read.questions, name))


def _read_form(forced: ForcedForm, key: bytes, templates: Sequence[Template]) -> _FormQuestions | None:
    digest = hashlib.sha256(key).digest()
    if len(forced.forms) > 1:
        options = {form.name: form.description or None for form in forced.forms}
        return _FormQuestions({_CHOICE_OF_TOOL: choice(options, "Which tool is called?")}, None, (), digest)
    form = forced.forms[0]
    own = tuple(template for template in templates if template.tool == form.name)
    fields = read_schema(form.schema)
    if fields is None or (fields.free and not own):
        return None
    return _FormQuestions(_named(form, fields.deciding), fields, own, digest)


def _named(form: Form, fields: Sequence[DecidingField]) -> dict[str, TypedQuestion]:
    """The questions by name. The first one says what the form is for."""
    named = {field.name: field.question for field in fields}
    first = min(named)
    words = "\n".join(part for part in (form.description, named[first].text) if part)
    named[first] = TypedQuestion(named[first].kind, named[first].options, words)
    return named


def read_templates(tables: Sequence[Any]) -> tuple[Template, ...]:
    """The tables of `[[gateway.forced]]`. Raises `GatewayConfigError`."""
    templates = []
    for i, table in enumerate(tables):
        place = f"[[gateway.forced]] number {i + 1}"
        known = {"tool", "when", "fields"}
        if not isinstance(table, Mapping) or (unknown := sorted(table.keys() - known)):
            raise GatewayConfigError(f"{place}: {unknown[0] if isinstance(table, Mapping) else table!r} is not known")
        tool, when, fields = table.get("tool"), table.get("when", {}), table.get("fields")
        if not isinstance(tool, str) or not tool:
            raise GatewayConfigError(f"{place} tool: the name of a tool or of a JSON schema is needed")
        if not isinstance(when, Mapping) or not all(isinstance(values, list) and values for values in when.values()):
            raise GatewayConfigError(f"{place} when: a table of fields and lists of their values is needed")
        if fields is not None and not isinstance(fields, Mapping):
            raise GatewayConfigError(f"{place} fields: a table of the free fields and their values is needed")
        conditions = {name: tuple(orjson.dumps(value) for value in values) for name, values in when.items()}
        templates.append(Template(tool, conditions, fields))
    return tuple(templates)


def _decided(field: DecidingField, arguments: Any) -> Any:
    value = arguments
    for name in field.path:
        if not isinstance(value, dict) or name not in value:
            raise UnparseableAnswer(f"{field.name} is missing")
        value = value[name]
    try:
        key = field.keys[orjson.dumps(value)]
    except (KeyError, TypeError):
        raise UnparseableAnswer(f"{field.name} is none of its values") from None
    return key == "true" if field.question.kind == "boolean" else key


def _put(arguments: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        arguments = arguments.setdefault(name, {})
    arguments[path[-1]] = value


def _merge(arguments: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` with the `fields` that they lack, within objects as well."""
    merged = dict(fields) | arguments
    for name, value in arguments.items():
        if isinstance(value, dict) and isinstance(other := fields.get(name), Mapping):
            merged[name] = _merge(value, other)
    return merged


def _missing(arguments: Any, path: Sequence[str]) -> bool:
    for name in path:
        if not isinstance(arguments, Mapping) or name not in arguments:
            return True
        arguments = arguments[name]
    return False


def _holds(template: Template, arguments: dict[str, Any]) -> bool:
    for name, values in template.when.items():
        value: Any = arguments
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if orjson.dumps(value) not in values:
            return False
    return True


def _hash(key: _TypeKey) -> str:
    return hashlib.sha256(key[0] + key[1].encode()).hexdigest()[:8]


def _marks(turns: Sequence[Turn]) -> tuple[str, ...]:
    """What tells a conversation from others: its beginning, and two turns in a row with some words."""
    said = [f"{turn.role}\0{turn.text}" for turn in turns]
    pairs = [f"{a}\0{b}" for a, b in itertools.pairwise(said)]
    return (said[0], *(pair for pair in pairs if len(pair) >= _TELLING))
