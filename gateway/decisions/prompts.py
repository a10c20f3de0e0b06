"""Decision prompts of agent frameworks: recognised by their words, read into a context, answered in their own format.

A model's name says nothing about what a request is for, so the prompt itself has to. A prompt is a decision only when
its kind, its agent, its conversation and (for a plan) its actions are all found in it; every other prompt passes on.

Built in are elizaOS's should-respond and message-handler templates (1.x: XML; 2.x: TOON; and their older JSON forms).
More by configuration, one table a kind, its patterns in RE2's syntax (linear in time: any client may send a prompt)::

    [[gateway.prompts]]
    decision_type = "should_respond"
    match = 'Should (?P<agent>\\w+) answer'          # searched in the prompt; the group `agent` is the agent's name
    agent = '^You are (?P<agent>.+)\\.$'             # when `match` has no such group
    message = '^(?P<speaker>[^:\\n]+): (?P<text>.+)$'  # a message's first line; it goes on to the next one or to `stop`
    stop = '^(#|<|$)'                                # a line of no message (default: an empty one, or one with # or <)
    action = '^- (?P<name>\\w+): (?P<description>.*)$' # for a plan
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson
import re2

from gateway.decisions.toon import read_toon
from gateway.errors import GatewayConfigError
from reasoning.decision_types import DecisionType
from reasoning.formats.markup import whole_json_object

AnswerSyntax = Literal["xml", "toon", "json"]

STAGE_ONE_TOOL = "HANDLE_RESPONSE"  # by which the elizaOS of 2026 has its first decision told
_MAX_PROMPT = 200_000
_TELLING = 24  # characters of two messages that are unlikely to be said in another conversation
_STOP = r"^\s*$|^#|^<"


@dataclass(frozen=True, slots=True)
class PromptKind:
    """How one kind of decision prompt is recognised and read; all patterns are multi-line."""

    decision_type: str
    match: re.Pattern[str]
    agent: re.Pattern[str] | None
    messages: tuple[re.Pattern[str], ...]
    actions: tuple[re.Pattern[str], ...] = ()
    stop: re.Pattern[str] = re.compile(_STOP)


@dataclass(frozen=True, slots=True)
class DecisionPrompt:
    """A recognised prompt: what is asked, about what, and in which format the answer is wanted."""

    decision_type: str
    context: dict[str, Any]
    format: AnswerSyntax
    wants_routing: bool = False  # elizaOS 2: also wants to know which of its contexts matters
    marks: tuple[str, ...] = ()  # what tells this conversation from others (`gateway.decisions.episodes`), oldest first
    echoes: Mapping[str, str] = field(default_factory=dict)  # fields that the answer must give back, and their values
    subject_ids: tuple[str, ...] = ()  # the people in it: their names, and their ids where the prompt has them


# `12:34 (2 minutes ago) [entity id] Name: text`, as elizaOS writes its conversation.
_ELIZA_MESSAGE = re.compile(
    r"^(?P<time>\d\d:\d\d) \([^)\n]*\) \[(?P<id>[0-9A-Fa-f-]{8,})\] (?P<speaker>[^(:\n][^:\n]{0,79}): (?P<text>.*)$",
    re.M,
)
_PLAIN_MESSAGE = re.compile(r"^(?P<speaker>[\w@.'-]{1,30}(?: [\w@.'-]{1,30}){0,2}): (?P<text>.+)$", re.M)
# What elizaOS writes under a message, and what ends its conversation.
_ELIZA_STOP = re.compile(
    r"^\s*$|^#|^<|^\d\d:\d\d \([^)\n]*\) \[|^ ?\([^)\n]*'s (internal thought|actions): |^ \(Attachments: "
)
_ELIZA_ACTIONS = (  # blanks but no line breaks: `^\s*` looks at every run of blank lines from each of them
    re.compile(r"^[ \t]*- \*\*(?P<name>[A-Z][A-Z0-9_]*)\*\*:? ?(?P<description>.*)$", re.M),
    re.compile(r"^[ \t]*(?:- )?name: (?P<name>[A-Z][A-Z0-9_]*)\n[ \t]*description: (?P<description>.*)$", re.M),
    re.compile(r"^[ \t]*- (?P<name>[A-Z][A-Z0-9_]*): (?P<description>.*)$", re.M),
    re.compile(r"^\*\*(?P<name>[A-Z][A-Z0-9_]*)\*\*:? ?(?P<description>.*)$", re.M),
)
_ACTION_NAMES = re.compile(
    r"^(?:# )?(?:Possible|Available) (?:response )?actions?: (?P<names>[A-Z][A-Z0-9_]*(?:, ?[A-Z][A-Z0-9_]*)*)$",
    re.M | re.I,
)
_AGENT = r"(?P<agent>[^\n<>{}]{1,80}?)"

_ELIZA: Any = {"agent": None, "messages": (_ELIZA_MESSAGE, _PLAIN_MESSAGE), "stop": _ELIZA_STOP}
# Each begins with plain text: a pattern that does not costs fifty times as much to look for.
ELIZA_KINDS = (
    PromptKind(
        "should_respond",
        re.compile(rf"Decide on behalf of {_AGENT} whether they should respond to the message, ignore it or stop"),
        **_ELIZA,
    ),
    PromptKind(
        "should_respond", re.compile(rf"task: Decide whether {_AGENT} should respond, ignore, or stop"), **_ELIZA
    ),
    PromptKind(
        "planning",
        re.compile(rf"Generate dialog and actions for (?:the character )?{_AGENT}\.?(?:</task>|\n|$)", re.M),
        actions=_ELIZA_ACTIONS,
        **_ELIZA,
    ),
)


def read_kinds(tables: Sequence[Mapping[str, Any]], types: Mapping[str, DecisionType]) -> tuple[PromptKind, ...]:
    """The configured kinds and the built-in ones. Raises `GatewayConfigError`."""
    kinds = []
    for i, table in enumerate(tables):
        place = f"[[gateway.prompts]] number {i + 1}"
        known = {"decision_type", "match", "agent", "message", "stop", "action"}
        if not isinstance(table, Mapping) or (unknown := sorted(table.keys() - known)):
            raise GatewayConfigError(f"{place}: {unknown[0] if isinstance(table, Mapping) else table!r} is not known")
        if table.get("decision_type") not in types:
            raise GatewayConfigError(f"{place} decision_type: known are {', '.join(types)}")
        match, agent = _pattern(place, table, "match", ()), None
        if "agent" not in match.groupindex:
            agent = _pattern(place, table, "agent", ("agent",))
        actions: tuple[re.Pattern[str], ...] = ()
        if _asks_for_actions(types[table["decision_type"]]):
            actions = (_pattern(place, table, "action", ("name",)),)
        stop = _pattern(place, table, "stop", ()) if "stop" in table else re.compile(_STOP)
        message = _pattern(place, table, "message", ("speaker", "text"))
        kinds.append(PromptKind(table["decision_type"], match, agent, (message,), actions, stop))
    return (*kinds, *ELIZA_KINDS)


def recognise(prompt: str, kinds: Sequence[PromptKind], types: Mapping[str, DecisionType]) -> DecisionPrompt | None:
    """The decision that a prompt asks for, or None when it asks for something else or cannot be read."""
    if len(prompt) > _MAX_PROMPT:
        return None
    for kind in kinds:
        match = kind.match.search(prompt)
        if match is None:
            continue
        agent = _agent(kind, match, prompt)
        format = _format(prompt)
        shown = _messages(kind, prompt)
        if agent is None or format is None or not shown:
            continue
        messages = [{"speaker": message["speaker"], "text": message["text"]} for message in shown]
        context: dict[str, Any] = {"agent_name": agent, "messages": messages}
        if _asks_for_actions(types[kind.decision_type]):
            if not (actions := _actions(kind, prompt)):
                continue
            context["actions"] = actions
        people = [message for message in shown if message["speaker"] != agent]
        subjects = dict.fromkeys(message[name] for name in ("speaker", "id") for message in people if name in message)
        return DecisionPrompt(
            kind.decision_type,
            context,
            format,
            wants_routing="primaryContext" in prompt,
            marks=_marks(shown),
            echoes=_echoes(prompt),
            subject_ids=tuple(subjects),
        )
    return None


def write_answer(prompt: DecisionPrompt, decision: Mapping[str, Any], type: DecisionType) -> str:
    """A decision in the format that the prompt asked for."""
    fields = {**prompt.echoes, **_WRITERS.get(type.answer, _decision_fields)(prompt, decision)}
    match prompt.format:
        case "json":
            return orjson.dumps(fields).decode()
        case "toon":
            return _toon(fields)
        case _:
            return _xml(fields)


def _label_fields(prompt: DecisionPrompt, decision: Mapping[str, Any]) -> dict[str, Any]:
    fields = {
        "name": prompt.context["agent_name"],
        "reasoning": decision.get("reasoning") or "",
        "action": decision["action"],
    }
    return fields | ({"primaryContext": "general", "secondaryContexts": ""} if prompt.wants_routing else {})


def _plan_fields(prompt: DecisionPrompt, decision: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "thought": decision.get("thought") or "",
        "actions": list(decision["actions"]) or ["IGNORE"],  # what elizaOS's template asks for when there is none
        "providers": list(decision.get("providers") or []),
        "text": decision.get("text") or "",
    }


def _decision_fields(prompt: DecisionPrompt, decision: Mapping[str, Any]) -> dict[str, Any]:
    return dict(decision)


# How elizaOS's prompts want the decisions of these forms; a decision of another form is written as it is.
_WRITERS = {"label": _label_fields, "plan": _plan_fields}


def read_decision(
    format: AnswerSyntax, text: str, type: DecisionType, context: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The decision in what an upstream answered. Raises `UnparseableAnswer`.

    With the context of a plan, its actions must be among those of the context. Of elizaOS's own words for an action,
    NONE is IGNORE, in a plan both mean no action, and RESPOND is REPLY.
    """
    return _READERS.get(type.answer, _read_any)(format, text, type, context)


def _read_any(format: AnswerSyntax, text: str, type: DecisionType, context: Mapping[str, Any] | None) -> dict[str, Any]:
    return type.normalize(read_toon(text) if format == "toon" and _is_toon(text) else text, context)


def _read_plan(
    format: AnswerSyntax, text: str, type: DecisionType, context: Mapping[str, Any] | None
) -> dict[str, Any]:
    plan = _read_any(format, text, type, None)
    if context is None:
        return plan
    names = {str(action.get("name")).casefold() for action in context.get("actions") or () if isinstance(action, dict)}
    actions = [_control_action(name, names) for name in plan["actions"]]
    if len(actions) == 1 and actions[0] == "IGNORE" and "ignore" not in names:
        actions = []
    return type.normalize(plan | {"actions": actions}, context)


def _read_label(
    format: AnswerSyntax, text: str, type: DecisionType, context: Mapping[str, Any] | None
) -> dict[str, Any]:
    none_is_ignore = "IGNORE" in type.labels and "NONE" not in type.labels
    wider = replace(type, labels=(*type.labels, "NONE")) if none_is_ignore else type
    if (whole := read_stage_one(text)) is not None:
        decision = wider.normalize(whole)
    elif format == "toon" and _is_toon(text):
        decision = wider.normalize(read_toon(text))
    else:
        decision = wider.parse(text)
    if none_is_ignore and decision["action"] == "NONE":
        decision["action"] = "IGNORE"
    return decision


# What elizaOS's models write beside the documented forms; of other forms their own parser knows all.
_READERS = {"label": _read_label, "plan": _read_plan}


def _asks_for_actions(type: DecisionType) -> bool:
    """Does a context of this type list actions?"""
    return "actions" in type.form.context_schema(type)["properties"]


def read_stage_one(arguments: str) -> dict[str, Any] | None:
    """The label in the arguments of elizaOS's tool `HANDLE_RESPONSE`, flat or with the older `plan`, or None."""
    found = whole_json_object(arguments)
    if found is None or "action" in found:
        return None
    said = [found[name] for name in ("shouldRespond", "processMessage") if name in found]
    if not said or said[0] != said[-1]:
        return None
    thought = found.get("thought")
    return {"action": said[0], "reasoning": thought if isinstance(thought, str) else None}


def _control_action(name: str, known: Collection[str]) -> str:
    if name.casefold() in known:
        return name
    return {"NONE": "IGNORE", "IGNORE": "IGNORE", "RESPOND": "REPLY"}.get(name.upper(), name)


def _is_toon(text: str) -> bool:
    return "<response" not in text and not text.lstrip().startswith("{")


_QUIET = re2.Options()
_QUIET.log_errors = False


def _pattern(place: str, table: Mapping[str, Any], name: str, groups: tuple[str, ...]) -> re.Pattern[str]:
    value = table.get(name)
    if not isinstance(value, str):
        raise GatewayConfigError(f"{place} {name}: a regular expression is needed")
    try:
        pattern: re.Pattern[str] = re2.compile(f"(?m){value}", _QUIET)  # any client may send what it is tried on
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error
        raise GatewayConfigError(
            f"{place} {name}: {reason}; write it in RE2's syntax, which has no look-around and no back-references"
        ) from None
    for group in groups:
        if group not in pattern.groupindex:
            raise GatewayConfigError(f"{place} {name}: it needs a group (?P<{group}>...)")
    return pattern


def _agent(kind: PromptKind, match: re.Match[str], prompt: str) -> str | None:
    if kind.agent is not None:
        found = kind.agent.search(prompt)
        return found["agent"].strip() if found else None
    name = match.groupdict().get("agent")
    return name.strip() if name and name.strip() else None


def _format(prompt: str) -> AnswerSyntax | None:
    """What the prompt asks for. TOON first: its templates say "No XML, no JSON"."""
    if re.search(r"\bTOON (only|document|format)\b", prompt):
        return "toon"
    if "<response>" in prompt:
        return "xml"
    if re.search(r"\bJSON\b|```json", prompt):
        return "json"
    return None


def _messages(kind: PromptKind, prompt: str) -> list[dict[str, str]]:
    for pattern in kind.messages:
        text = prompt
        if pattern is _PLAIN_MESSAGE:
            # Too many lines look like it: only under the heading of a conversation.
            sections = re.findall(
                r"^#+ (?:Conversation|Recent)[^\n]*\n(.*?)(?=^#|^<|\Z)", prompt, re.M | re.S | re.I
            ) + re.findall(r"^#+ Received Message\n(.*?)(?=^#|^<|\Z)", prompt, re.M | re.S)
            text = "\n\n".join(sections)
        if found := _lines_of(pattern, kind.stop, text):
            return found
    return []


def _lines_of(pattern: re.Pattern[str], stop: re.Pattern[str], text: str) -> list[dict[str, str]]:
    matches = list(pattern.finditer(text))
    found: list[dict[str, str]] = []
    for i, match in enumerate(matches):
        end = matches[i + 1].start() if i + 1 < len(matches) else len(text)
        lines = [match["text"]]
        for line in text[match.end() : end].split("\n")[1:]:
            if stop.search(line):
                break
            lines.append(line)
        message = match.groupdict() | {"speaker": match["speaker"].strip(), "text": "\n".join(lines).strip()}
        if message["text"] and (not found or found[-1] != message):
            found.append(message)
    return found


# elizaOS 2 checks that a model has read its prompt: codes stand in it, and are asked for in fields of the answer.
_CODE = re.compile(r"^(?P<name>initial|middle|end) code: (?P<code>[0-9a-f-]{36})$", re.M)
_ECHOED = re.compile(
    r"^[ \t]*[<\"](?P<field>(?:one|two)_(?P<name>initial|middle|end)_code|code_\w+)(?:>|\": \")"
    r"(?:echo the (?P=name) UUID code|output exactly: (?P<code>[0-9a-f]{8}))",
    re.M,
)


def _echoes(prompt: str) -> dict[str, str]:
    codes = {match["name"]: match["code"] for match in _CODE.finditer(prompt)}
    asked = {match["field"]: match["code"] or codes.get(match["name"]) for match in _ECHOED.finditer(prompt)}
    return {name: code for name, code in asked.items() if code}


def _marks(messages: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """One message with its time and sender is like no other. Of others it takes two in a row, and some words."""
    if "time" in messages[0] and "id" in messages[0]:
        return tuple(f"{m['time']}\0{m['id']}\0{m['text']}" for m in messages)
    said = [f"{m['speaker']}\0{m['text']}" for m in messages]
    pairs = [f"{a}\0{b}" for a, b in itertools.pairwise(said)]
    return (said[0], *(pair for pair in pairs if len(pair) >= _TELLING))


def _actions(kind: PromptKind, prompt: str) -> list[dict[str, str]]:
    for pattern in kind.actions:
        section = prompt
        if kind in ELIZA_KINDS:
            match = re.search(r"^#+ (?:Available )?Actions?\b[^\n]*\n(.*?)(?=^# |^<|\Z)", prompt, re.M | re.S | re.I)
            section = match[1] if match else ""
        found = {m["name"]: (m.groupdict().get("description") or "").strip() for m in pattern.finditer(section)}
        if found:
            return [{"name": name, "description": description} for name, description in found.items()]
    if kind in ELIZA_KINDS and (match := _ACTION_NAMES.search(prompt)):
        return [{"name": name.strip(), "description": ""} for name in match["names"].split(",")]
    return []


def _xml(fields: Mapping[str, Any]) -> str:
    lines = []
    for name, value in fields.items():
        text = ",".join(value) if isinstance(value, list) else str(value)
        # elizaOS's parser does not decode entities in every version; it ends a field at its own closing tag only.
        lines.append(f"  <{name}>{text.replace(f'</{name}>', '').replace('</response>', '')}</{name}>")
    return "<response>\n" + "\n".join(lines) + "\n</response>"


_TOON_PLAIN = re.compile(r"[A-Za-z_(][^\n\"\\:,\[\]{}#|\t]*[^\s\"\\:,\[\]{}#|]|[A-Za-z_]")
_TOON_WORDS = {"true", "false", "null"}


def _toon(fields: Mapping[str, Any]) -> str:
    """TOON (spec 2.0): `key: value` lines; a string is quoted when it could be read as something else."""
    lines = []
    for name, value in fields.items():
        if name == "actions":
            lines.append(f"actions[{len(value)}]:")
            lines += [f"  - name: {_toon_string(item)}" for item in value]
        elif isinstance(value, list):
            lines.append(f"{name}: {_toon_string(', '.join(value))}".rstrip())
        else:
            lines.append(f"{name}: {_toon_string(value)}".rstrip())
    return "\n".join(lines)


def _toon_string(text: str) -> str:
    if not text or (_TOON_PLAIN.fullmatch(text) and text.lower() not in _TOON_WORDS):
        return text
    return orjson.dumps(text).decode()
