"""What a model thought is no answer: the marks of thoughts, and the part of a completion that follows the last one.

Servers are meant to take the thoughts out of `content`. Many do not, or only when they know the model, and a chat
template may open a thought that only ends in the completion. So three rules hold, whatever the model:

* Nothing before the last end of a thought counts, even where the thought was not begun in the completion.
* A thought that is begun and not ended means that there is no answer.
* A mark that is the whole of an inline code span (`` `<think>` ``) begins no thought and ends none that was begun.
* In code and in a coding tool's turn the marks may be data. They count only outside the code blocks that the caller
  names, and never as the whole of an inline code span (`` `</think>` ``). An opening mark counts only at the start of a
  line. An ending mark without an opening one does not count where a sentence goes on around it.

The marks are those of DeepSeek, Qwen, GLM, Kimi, MiniMax, Nemotron (`<think>`), Magistral (`[THINK]`), Kimi-VL
(`◁think▷`), Seed-OSS, Command A, Apertus, Solar, Gemma (`<|channel>thought`), MedGemma, and of harmony (gpt-oss),
also as it looks when its special tokens were dropped (`analysis…assistantfinal…`).
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Sequence

from reasoning.errors import UnparseableAnswer

_NAMES = "think|thinking|thoughts|scratchpad|reflection|seed:think|antml:thinking|mm:think"
# Every repetition is bounded or ends at the next `<`, so that a search is linear.
MARK = re.compile(
    rf"(?P<close></(?:{_NAMES})\s{{0,8}}>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|inner_suffix\|>|<unused95>|<channel\|>"
    r"|<\|channel\|>\s{0,4}final[^<]{0,40}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>)"
    rf"|(?P<open><(?:{_NAMES})(?=[\s>])[^<>]{{0,80}}>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|inner_prefix\|>|<\|think\|>"
    r"|<unused94>|<\|channel>|<\|channel\|>\s{0,4}(?:analysis|commentary))",
    re.IGNORECASE,
)
# Names that our own answers use for a field inside `<response>`: a thought only where they stand around an answer.
_OUTER = re.compile(r"<(?P<end>/?)(?P<name>thought|reasoning|analysis|response)\b[^<>]{0,200}>", re.IGNORECASE)
_BLANKS = re.compile(r"\s*")
_LEAKED = re.compile(r"\Aanalysis[A-Z]")
_OPEN_AT_END = "the completion ends inside a thought: it holds no answer"

Spans = Sequence[tuple[int, int]]


def drop_thoughts(text: str) -> str:
    """What follows the last thought of a completion that is a decision. Raises `UnparseableAnswer` for an open one."""
    text = _drop_leaked_channel(text)
    end, is_open, is_quoted = 0, False, False
    for mark in MARK.finditer(text):
        opens = mark.lastgroup == "open"
        if _is_inline_code(text, mark) and (opens or is_open or is_quoted):
            is_quoted = is_quoted or opens
            continue
        is_open = opens
        end = end if is_open else mark.end()
    if is_open:
        raise UnparseableAnswer(_OPEN_AT_END)
    return _drop_outer(text[end:])


def drop_leading_thoughts(text: str) -> str:
    """A text without the thoughts that it begins with. Raises `UnparseableAnswer` where one does not end."""
    text = _drop_leaked_channel(text)
    at = 0
    while (mark := MARK.match(text, _end_of_blanks(text, at))) is not None:
        if mark.lastgroup == "open":
            mark = next((found for found in MARK.finditer(text, mark.end()) if found.lastgroup == "close"), None)
            if mark is None:
                raise UnparseableAnswer(_OPEN_AT_END)
        at = mark.end()
    return text[at:]


def drop_thoughts_around(text: str, data: Spans) -> str:
    """What follows the last thought of a text in which the marks within the spans `data` (sorted) are data.

    Raises `UnparseableAnswer` for an open thought.
    """
    ends = [end for _, end in data]
    cut, is_open = 0, False
    for mark in MARK.finditer(text):
        if is_inside(mark.start(), data, ends) or _is_inline_code(text, mark):
            continue
        if mark.lastgroup == "open":
            is_open = is_open or _begins_line(text, mark.start())
        elif is_open or not _is_mentioned(text, mark):
            cut, is_open = mark.end(), False
    if is_open:
        raise UnparseableAnswer(_OPEN_AT_END)
    return text[cut:]


def is_inside(at: int, spans: Spans, ends: Sequence[int]) -> bool:
    """Does a place lie in one of the sorted spans? `ends` are their ends."""
    i = bisect.bisect_right(ends, at)
    return i < len(spans) and spans[i][0] <= at


def _drop_leaked_channel(text: str) -> str:
    """Harmony without its special tokens runs together as `analysis…assistantfinal…`."""
    if not text.startswith("analysis"):
        return text
    at = text.rfind("assistantfinal")
    if at < 0 and _LEAKED.match(text):
        raise UnparseableAnswer(_OPEN_AT_END)
    return text if at < 0 else text[at + len("assistantfinal") :]


def _drop_outer(text: str) -> str:
    cut, responses, outer = 0, 0, ""
    depth: Counter[str] = Counter()
    for tag in _OUTER.finditer(text):
        name, ends = tag["name"].lower(), bool(tag["end"])
        if name == "response":
            responses = max(responses + (-1 if ends else 1), 0)
        elif not ends:
            outer = outer or ("" if responses else name)
            depth[name] += 1
        elif depth[name] > 1 or (depth[name] == 1 and name != outer):
            depth[name] -= 1
        else:  # it ends the outer thought, or one that the template began
            cut, responses, outer = tag.end(), 0, ""
            depth.clear()
    if outer:
        raise UnparseableAnswer(_OPEN_AT_END)
    return text[cut:]


def _end_of_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _begins_line(text: str, at: int) -> bool:
    before = text[max(at - 80, 0) : at]
    return not before[before.rfind("\n") + 1 :].strip()


def _is_inline_code(text: str, mark: re.Match[str]) -> bool:
    return text[max(mark.start() - 1, 0) : mark.start()] == "`" == text[mark.end() : mark.end() + 1]


def _is_mentioned(text: str, mark: re.Match[str]) -> bool:
    """`the </think> tag`, `"</think>" ends it`: a sentence goes on around the mark on its line."""
    before = text[max(mark.start() - 80, 0) : mark.start()]
    after = text[mark.end() : mark.end() + 80].split("\n", 1)[0]
    before = before[before.rfind("\n") + 1 :]
    return before[-1:] in (" ", '"', "'") and after[:1] in (" ", '"', "'") and bool(before.strip() and after.strip())
