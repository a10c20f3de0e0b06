"""Numbers that tell whom the last line of a transcript was for.

The features of research on conversation disentanglement and addressee recognition (Elsner and Charniak, "You Talking
to Me?", 2008; Kummerfeld et al., "A Large-Scale Corpus for Conversation Disentanglement", 2019), from the view of the
agent who is asked: who spoke when, who alternates with whom, who was answered last, who is named, how far back the
agent's last words are, shared words, questions and lengths.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from emulator.transcript import Transcript

_WORD = re.compile(r"\w+")
_WH = re.compile(r"\b(who|what|when|where|why|how|which|do you|are you|did you|have you|would you|can you)\b")
_STOP = ENGLISH_STOP_WORDS | {"don", "just", "like", "ll", "oh", "ok", "re", "s", "t", "ve", "yeah", "yes"}
NEAR = 8
"""How many lines back shared words are looked for."""


def words(text: str) -> list[str]:
    """Lower-case words of a text."""
    return _WORD.findall(text.lower())


def _content_words(text: str) -> frozenset[str]:
    return frozenset(words(text)) - _STOP


def _share(part: float, whole: float, prior: float = 0.5, weight: float = 1.0) -> float:
    return (part + prior * weight) / (whole + weight)


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / math.sqrt(len(a) * len(b)) if a and b else 0.0


def _alternation(speakers: list[str], a: str, b: str) -> tuple[int, int]:
    """How regularly two speakers take turns: changes of speaker among the turns of both, and steps between them."""
    turns = [speaker for speaker in speakers if speaker in (a, b)]
    steps = len(turns) - 1
    changes = sum(x != y for x, y in itertools.pairwise(turns))
    return changes, max(steps, 0)


def transcript_features(transcript: Transcript) -> dict[str, float]:
    """Features of the question: is the last line for the agent? Every value is finite, most lie in 0..1."""
    lines = transcript.lines
    agent = transcript.agent or ""
    last = transcript.last
    speaker = last.speaker
    speakers = [line.speaker for line in lines]
    before = speakers[:-1]
    n = len(lines)
    others = {s for s in speakers if s not in (agent, speaker)}
    counts = Counter(speakers)

    agent_at = [i for i, s in enumerate(before) if s == agent]
    since_agent = n - 1 - agent_at[-1] if agent_at else n
    own_at = [i for i, s in enumerate(before) if s == speaker]
    since_own = n - 1 - own_at[-1] if own_at else n
    spoken_since = sum(i > agent_at[-1] for i in own_at) if agent_at else len(own_at)
    agent_since_own = sum(i > own_at[-1] for i in agent_at) if own_at else len(agent_at)
    after_agent = [speakers[i + 1] for i in agent_at if i + 1 < n]
    before_agent = [speakers[i - 1] for i in agent_at if i > 0]
    before_own = [speakers[i - 1] for i in own_at if i > 0]
    after_own = [speakers[i + 1] for i in own_at if i + 1 < n]

    with_agent, steps = _alternation(speakers, agent, speaker)
    own_pair = _share(with_agent, steps, weight=2)
    rival_of_agent = max((_share(*_alternation(before, agent, s), weight=2) for s in others), default=0.5)
    rival_of_own = max((_share(*_alternation(before, speaker, s), weight=2) for s in others), default=0.5)

    content = _content_words(last.text)
    near = lines[max(0, n - 1 - NEAR) : -1]
    shared = {"agent": 0.0, "own": 0.0, "others": 0.0}
    for line in near:
        who = "agent" if line.speaker == agent else "own" if line.speaker == speaker else "others"
        shared[who] = max(shared[who], _overlap(content, _content_words(line.text)))

    agent_last = lines[agent_at[-1]].text if agent_at else ""
    previous = lines[-2].text if n > 1 else ""
    tokens = words(last.text)
    lower = last.text.lower()
    named = bool(agent) and agent.lower() in lower
    asked_by_agent = "?" in agent_last
    return {
        "agent_named": named,
        "other_named": any(s.lower() in tokens for s in others),
        "agent_named_before": bool(agent) and agent.lower() in previous.lower(),
        "agent_never_spoke": not agent_at,
        "speaker_is_new": not own_at,
        "previous_is_agent": bool(before) and before[-1] == agent,
        "previous_but_one_is_agent": n > 2 and before[-2] == agent,
        "first_after_agent": bool(agent_at) and spoken_since == 0,
        "answered_last_by_agent": bool(agent_at) and agent_at[-1] > 0 and speakers[agent_at[-1] - 1] == speaker,
        "answered_agent_last": bool(after_agent) and len(after_agent) > 1 and after_agent[-2] == speaker,
        "agent_since_own": min(agent_since_own, 4) / 4,
        "agent_spoke_once_since_own": agent_since_own == 1,
        "spoken_since_agent": min(spoken_since, 5) / 5,
        "since_agent": math.log1p(min(since_agent, 30)),
        "since_own": math.log1p(min(since_own, 30)),
        "turns": math.log1p(n),
        "people": math.log1p(len(counts)),
        "agent_share": counts[agent] / max(n, 1),
        "speaker_share": counts[speaker] / max(n, 1),
        "count_difference": abs(counts[agent] - counts[speaker]) / max(counts[agent] + counts[speaker], 1),
        "alternation": own_pair,
        "alternation_steps": math.log1p(steps),
        "alternation_evidence": (own_pair - 0.5) * math.log1p(steps),
        "alternation_over_agents_rival": own_pair - rival_of_agent,
        "alternation_over_own_rival": own_pair - rival_of_own,
        "agent_follows_speaker": _share(sum(s == agent for s in after_own), len(after_own), 0.3),
        "speaker_follows_agent": _share(sum(s == agent for s in before_own), len(before_own), 0.3),
        "of_agents_turns_after_speaker": _share(sum(s == speaker for s in before_agent), len(before_agent), 0.3),
        "of_agents_turns_before_speaker": _share(sum(s == speaker for s in after_agent), len(after_agent), 0.3),
        "shared_with_agent": shared["agent"],
        "shared_with_own": shared["own"],
        "shared_with_others": shared["others"],
        "agent_asked": asked_by_agent,
        "agent_asked_first_after": asked_by_agent and bool(agent_at) and spoken_since == 0,
        "agent_words": math.log1p(len(words(agent_last))),
        "question": "?" in last.text,
        "ends_as_question": last.text.rstrip().endswith("?"),
        "asks_you": bool(_WH.search(lower)),
        "words": math.log1p(len(tokens)),
        "rows": math.log1p(last.text.count("\n")),
        "ends_open": last.text.rstrip().endswith(("...", ",", "…", "-", ":")),
        "ends_closed": last.text.rstrip().endswith((".", "!", "?")),
    }
