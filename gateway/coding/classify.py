"""Is an Anthropic request coding? A linear classifier over signals that a person can check.

Every signal is 0 or 1; their weights are added, and a request at or above the threshold is coding:

====================  ======  ===============================================================================
signal                weight  it is there when
====================  ======  ===============================================================================
`coding_tools`           1.0  two tools or more are offered that read, edit or run code (by name)
`coding_client`          0.6  the user agent is a known coding tool's
`coding_system`          1.0  the system prompt makes the model a programmer
`code_in_talk`           0.6  the last user's text or a tool's result holds a code block, a diff or a stack trace
`coding_task`            1.0  the last user's text asks to write, mend or test code, in whole words
`structured_output`     -9.0  a JSON schema is asked for: titles, summaries and other side calls of coding tools
`probe`                 -9.0  one token at most is asked for
`no_tools_offered`      -0.2  a coding client offers no tools: a side call
====================  ======  ===============================================================================

A learned classifier is another set of weights: `[gateway.coding] classifier = "weights.json"` with
`{"bias": 0.0, "weights": {"coding_tools": 1.4, ...}}`, trained on `signals` of logged requests, and its own threshold.
The header `x-reasoning-coding: on|off` decides for one request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from gateway.errors import GatewayConfigError

WEIGHTS: Mapping[str, float] = {
    "coding_tools": 1.0,
    "coding_client": 0.6,
    "coding_system": 1.0,
    "code_in_talk": 0.6,
    "coding_task": 1.0,
    "structured_output": -9.0,
    "probe": -9.0,
    "no_tools_offered": -0.2,
}
_SCANNED = 2400  # characters of a text that are looked at, half from each end

_TOOL_NAMES = {
    *("bash", "edit", "multiedit", "write", "read", "grep", "glob", "notebookedit", "lsp", "shell", "terminal"),
    *("readfile", "writefile", "editfile", "createfile", "deletefile", "listfiles", "listdir", "searchfiles"),
    *("strreplacebasededittool", "strreplaceeditor", "applypatch", "applydiff", "replaceinfile", "writetofile"),
    *("runcommand", "executecommand", "runterminalcmd", "runshellcommand", "executebash", "codebasesearch", "patch"),
    *("searchcode", "runtests", "insertcontent", "viewfile", "replace", "ls"),
}
_CLIENTS = re.compile(
    r"^(claude-cli|claude-code|aider|opencode|cline|roo-?code|kilo-?code|codex|crush|goose|pi)\b", re.I
)
_SYSTEM = re.compile(
    r"\b(software engineer(ing)?|(coding|programming) (assistant|agent|partner|tool|expert)|"
    r"(expert|senior|skilled|professional|experienced) ([\w+#]+ ){0,2}(developer|programmer|coder)|pair programm\w+|"
    r"you write code)\b"
)
# The patterns of words run on lower-cased text, and only where one of these is in it: they cost more than all the rest.
_SYSTEM_WORDS = ("engineer", "coding", "programm", "developer", "coder", "you write code")
_TASK_WORDS = (
    *("function", "script", "code", "test", "bug", "regex", "regular exp", "endpoint", "compiler", "algorithm"),
    *("query", "stack trace", "pull request", "class", "program", "module", "package", "app", "component", "library"),
    *(" in ", " to ", " into ", " using "),
)
_TASK_VERBS = (
    *("write", "implement", "add", "create", "fix", "debug", "refactor", "optimi", "port", "test", "compile"),
    *("generate", "convert", "migrate"),
)
_LANGUAGES = (
    r"python|typescript|javascript|java|kotlin|rust|golang|ruby|php|swift|c\+\+|c#|sql|bash|shell|html|css|react|"
    r"haskell|scala|lua|perl|elixir"
)
# A verb of making or mending, and soon after it a thing that only programmers make; a language alone is no such thing.
_TASK = re.compile(
    r"\b(write|implement|add|create|fix|debug|refactor|rewrite|optimi[sz]e|port|test|compile|generate|convert|migrate)\b"
    rf"(?:[^.?!\n]|\.(?=\w)){{0,80}}?\b(functions?|scripts?|source code|code|unit tests?|bugs?|regex(es)?|"
    rf"regular expressions?|"
    rf"(api |rest )?endpoints?|compilers?|algorithms?|sql query|stack trace|test suite|pull request|"
    rf"(in|to|into|using) ({_LANGUAGES})|({_LANGUAGES}) (class|program|module|package|app|component|query|library))"
    r"(?![\w+#])"
)
_PROSE = re.compile(r"\b(poem|song|lyrics|story|novel|essay|letter|e-?mail|film|movie|speech|dress code|haiku)\b")
_CODE = re.compile(
    r"^```[\w+#.-]*\n(?!```)|^diff --git |^@@ -\d+(,\d+)? \+\d+|^Traceback \(most recent call last\):|"
    r"^[ \t]++at [\w$.<>]++ ?\(.*:\d+(:\d+)?\)|^[ \t]*+(def \w+\((?=.*\)).*:|class \w+.*[:{]|(pub )?fn \w+|func \w+\(|"
    r"#include <|import [\w.{} ,*]+( from |;|$)|from [\w.]+ import )",
    re.M,
)
_CODE_WORDS = (
    "```",
    "diff --git",
    "@@ -",
    "Traceback",
    " at ",
    "def ",
    "class ",
    "fn ",
    "func ",
    "#include",
    "import ",
)


class Classification(NamedTuple):
    """What was decided and why: the signals that were there, and their sum."""

    coding: bool
    score: float
    signals: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Classifier:
    """Weights of signals."""

    weights: Mapping[str, float]
    threshold: float = 1.0
    bias: float = 0.0

    def __call__(self, body: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> Classification:
        switch = headers.get(b"x-reasoning-coding", b"").strip().lower()
        if switch in (b"on", b"off"):
            return Classification(switch == b"on", 0.0, ("switched_by_header",))
        found = signals(body, headers)
        score = self.bias
        for name in found:
            score += self.weights.get(name, 0.0)
        return Classification(score >= self.threshold - 1e-9, round(score, 6), tuple(found))


def load_classifier(path: Path | None, threshold: float = 1.0) -> Classifier:
    """The documented classifier, or the learned one in a JSON file. Raises `GatewayConfigError`."""
    if path is None:
        return Classifier(WEIGHTS, threshold)
    try:
        raw = orjson.loads(path.read_bytes())
        weights = {str(name): float(value) for name, value in raw["weights"].items()}
        bias = float(raw.get("bias", 0.0))
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise GatewayConfigError(f"{path}: no classifier: {type(error).__name__}: {error}") from None
    if unknown := sorted(weights.keys() - WEIGHTS.keys()):
        raise GatewayConfigError(f"{path}: {unknown[0]} is no signal; known are {', '.join(WEIGHTS)}")
    return Classifier(weights, threshold, bias)


def signals(body: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> list[str]:
    """The signals of a Messages request. Never raises, whatever the body holds."""
    found = []
    tools = {_tool_name(tool) for tool in _list(body.get("tools"))}
    if len(tools & _TOOL_NAMES) >= 2:
        found.append("coding_tools")
    client = _is_coding_client(headers.get(b"user-agent", b"")[:64])
    if client:
        found.append("coding_client")
    if _is_programmer(_ends(_texts(body.get("system")))):
        found.append("coding_system")
    asked, results = _last_turn(body)
    if _holds_code(_ends([*asked, *results])):
        found.append("code_in_talk")
    if _is_coding_task(_ends(asked)):
        found.append("coding_task")
    config = body.get("output_config")
    if (isinstance(config, Mapping) and config.get("format")) or body.get("output_format"):
        found.append("structured_output")
    limit = body.get("max_tokens")
    if isinstance(limit, int) and limit <= 1:
        found.append("probe")
    if client and not tools:
        found.append("no_tools_offered")
    return found


@lru_cache(maxsize=256)
def _is_coding_client(user_agent: bytes) -> bool:
    return _CLIENTS.match(user_agent.decode("latin-1")) is not None


def _holds_code(talk: str) -> bool:
    if "\n" not in talk:  # code begins a line, and this is but one
        return _CODE.match(talk) is not None
    return _has(talk, _CODE_WORDS) and _CODE.search(talk) is not None


# A client sends its system prompt with every request, and the question again with every result of a tool.
@lru_cache(maxsize=256)
def _is_programmer(system: str) -> bool:
    system = system.lower()
    return _has(system, _SYSTEM_WORDS) and _SYSTEM.search(system) is not None


@lru_cache(maxsize=1024)
def _is_coding_task(asked: str) -> bool:
    task = asked.lower()
    if not (_has(task, _TASK_VERBS) and _has(task, _TASK_WORDS)):
        return False
    return _TASK.search(task) is not None and _PROSE.search(task) is None


def _has(text: str, words: Iterable[str]) -> bool:
    for word in words:  # noqa: SIM110 - a loop takes half the time of any() here
        if word in text:
            return True
    return False


def _last_turn(body: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What the user asked last, and the tool results of the last user message."""
    asked: list[str] = []
    results: list[str] = []
    last = True
    for message in reversed(_list(body.get("messages"))):
        if not isinstance(message, Mapping) or message.get("role") != "user":
            continue
        content = message.get("content")
        if last:
            for block in _list(content):
                if isinstance(block, Mapping) and block.get("type") == "tool_result":
                    results += _texts(block.get("content"))
            last = False
        # A system reminder that a client puts before the question is not the question.
        asked = [text for text in _texts(content) if not text.lstrip().startswith("<system-reminder>")]
        if asked:
            break
    return asked, results


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [
        block["text"]
        for block in _list(content)
        if isinstance(block, Mapping) and block.get("type") == "text" and isinstance(block.get("text"), str)
    ]


def _ends(texts: Iterable[str]) -> str:
    text = "\n".join(texts)
    return text if len(text) <= _SCANNED else f"{text[: _SCANNED // 2]}\n{text[-_SCANNED // 2 :]}"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _tool_name(tool: Any) -> str:
    name = tool.get("name") if isinstance(tool, Mapping) else None
    return _plain_name(name[:100]) if isinstance(name, str) else ""


@lru_cache(maxsize=1024)
def _plain_name(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
