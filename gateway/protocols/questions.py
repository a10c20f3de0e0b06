"""What a request to a model asks for in words: the part of it that may be a decision prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Fields that ask for more than the words of one answer, or for one that the upstream has to remember.
_MORE_THAN_WORDS = (
    *("tools", "functions", "mcp_servers", "output_config", "output_format", "logprobs", "top_logprobs", "audio"),
    *("previous_response_id", "conversation", "background", "container", "include"),
)
_STOPS = ("stop", "stop_sequences")
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """The text of the last user message, whether a JSON object is wanted, and the texts at which an answer ends."""

    text: str
    json_object: bool = False
    stops: tuple[str, ...] = ()

    def cut(self, answer: str) -> tuple[str, str | None]:
        """An answer up to the first of `stops`, and that stop."""
        found = min((stop for stop in self.stops if stop in answer), key=answer.index, default=None)
        return (answer, None) if found is None else (answer[: answer.index(found)], found)


def read_question(request: Mapping[str, Any], turns: Any) -> TextPrompt | None:
    """What a request of Anthropic's or OpenAI's asks for; `turns` is its conversation.

    None where tools may be called, or where several answers, or one of a given schema, are wanted."""
    if any(request.get(name) for name in _MORE_THAN_WORDS) or request.get("n") not in (None, 1):
        return None
    if request.get("web_search_options") is not None or any(request.get(name) in (0, 1) for name in _LIMITS):
        return None  # an answer from the web; or a probe, whose one token is no decision
    text = request.get("text")
    formats = (request.get("response_format"), text.get("format") if isinstance(text, dict) else None)
    kinds = {str(wanted.get("type", "text")) for wanted in formats if isinstance(wanted, dict)} - {"text"}
    if kinds - {"json_object"} or not all(isinstance(request.get(name), str | list | None) for name in _STOPS):
        return None
    prompt = _text_of_last_user(turns)
    if prompt is None:
        return None
    wanted: Any = next((request[name] for name in _STOPS if request.get(name)), [])
    stops = [wanted] if isinstance(wanted, str) else [stop for stop in wanted if isinstance(stop, str) and stop]
    return TextPrompt(prompt, bool(kinds), tuple(stops))


def _text_of_last_user(turns: Any) -> str | None:
    if isinstance(turns, str):
        return turns
    if not isinstance(turns, list) or not turns:
        return None
    last = turns[-1]
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    content = last.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in ("text", "input_text"):
            return None  # a picture: our models do not see it
        texts.append(str(part.get("text", "")))
    return "\n".join(texts)
