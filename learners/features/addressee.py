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
from dataclasses import dataclass

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from learners.transcript import Transcript

_WORD = re.compile(r"\w+")
_WH = re.compile(r"\b(who|what|when|where|why|how|which|do you|are you|did you|have you|would you|can you)\b")
_STOP = ENGLISH_STOP_WORDS | {"don", "just", "like", "ll", "oh", "ok", "re", "s", "t", "ve", "yeah", "yes"}
NEAR = 8
"""How many lines back shared words are looked for."""


def words(text: str) -> list[str]:
    """Lower-case words of a text."""
    return _WORD.findall(text.lower())


def _content_words(text: str) -> frozenset[str]:
    content: frozenset[str] = frozenset(words(text)) - _STOP
    return content


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


@dataclass(frozen=True)
class _Talk:
    """Who spoke when, seen from the last line. Positions are indices of lines before it, oldest first."""

    agent: str
    speaker: str
    speakers: list[str]
    others: frozenset[str]
    agent_at: list[int]
    own_at: list[int]

    @classmethod
    def of(cls, transcript: Transcript) -> _Talk:
        agent, speaker = transcript.agent or "", transcript.last.speaker
        speakers = [line.speaker for line in transcript.lines]
        before = speakers[:-1]
        return cls(
            agent,
            speaker,
            speakers,
            frozenset(s for s in speakers if s not in (agent, speaker)),
            [i for i, s in enumerate(before) if s == agent],
            [i for i, s in enumerate(before) if s == speaker],
        )

    @property
    def spoken_since(self) -> int:
        """How often the speaker spoke since the agent did."""
        return sum(i > self.agent_at[-1] for i in self.own_at) if self.agent_at else len(self.own_at)

    @property
    def agent_since_own(self) -> int:
        """How often the agent spoke since the speaker did."""
        return sum(i > self.own_at[-1] for i in self.agent_at) if self.own_at else len(self.agent_at)


def transcript_features(transcript: Transcript) -> dict[str, float]:
    """Features of the question: is the last line for the agent? Every value is finite, most lie in 0..1.

    Their order is part of a trained model: it is asked for the values alone.
    """
    talk = _Talk.of(transcript)
    return (
        _addressing(transcript, talk)
        | _distances(talk)
        | _alternations(talk)
        | _following(talk)
        | _shared_words(transcript, talk)
        | _wording(transcript, talk)
    )


def _addressing(transcript: Transcript, talk: _Talk) -> dict[str, float]:
    """Who is named, and whose turn came before."""
    agent, speaker, speakers = talk.agent, talk.speaker, talk.speakers
    before, n = speakers[:-1], len(speakers)
    after_agent = [speakers[i + 1] for i in talk.agent_at if i + 1 < n]
    last = transcript.last.text
    previous = transcript.lines[-2].text if n > 1 else ""
    tokens = words(last)
    return {
        "agent_named": bool(agent) and agent.lower() in last.lower(),
        "other_named": any(s.lower() in tokens for s in talk.others),
        "agent_named_before": bool(agent) and agent.lower() in previous.lower(),
        "agent_never_spoke": not talk.agent_at,
        "speaker_is_new": not talk.own_at,
        "previous_is_agent": bool(before) and before[-1] == agent,
        "previous_but_one_is_agent": n > 2 and before[-2] == agent,
        "first_after_agent": bool(talk.agent_at) and talk.spoken_since == 0,
        "answered_last_by_agent": bool(talk.agent_at)
        and talk.agent_at[-1] > 0
        and speakers[talk.agent_at[-1] - 1] == speaker,
        "answered_agent_last": len(after_agent) > 1 and after_agent[-2] == speaker,
    }


def _distances(talk: _Talk) -> dict[str, float]:
    """How long ago agent and speaker spoke, and how much of the talk is theirs."""
    n, counts = len(talk.speakers), Counter(talk.speakers)
    agent, speaker = talk.agent, talk.speaker
    since_agent = n - 1 - talk.agent_at[-1] if talk.agent_at else n
    since_own = n - 1 - talk.own_at[-1] if talk.own_at else n
    return {
        "agent_since_own": min(talk.agent_since_own, 4) / 4,
        "agent_spoke_once_since_own": talk.agent_since_own == 1,
        "spoken_since_agent": min(talk.spoken_since, 5) / 5,
        "since_agent": math.log1p(min(since_agent, 30)),
        "since_own": math.log1p(min(since_own, 30)),
        "turns": math.log1p(n),
        "people": math.log1p(len(counts)),
        "agent_share": counts[agent] / max(n, 1),
        "speaker_share": counts[speaker] / max(n, 1),
        "count_difference": abs(counts[agent] - counts[speaker]) / max(counts[agent] + counts[speaker], 1),
    }


def _alternations(talk: _Talk) -> dict[str, float]:
    """Do agent and speaker take turns, more than each of them with somebody else?"""
    before = talk.speakers[:-1]
    with_agent, steps = _alternation(talk.speakers, talk.agent, talk.speaker)
    own_pair = _share(with_agent, steps, weight=2)
    agents_rival = max((_share(*_alternation(before, talk.agent, s), weight=2) for s in talk.others), default=0.5)
    own_rival = max((_share(*_alternation(before, talk.speaker, s), weight=2) for s in talk.others), default=0.5)
    return {
        "alternation": own_pair,
        "alternation_steps": math.log1p(steps),
        "alternation_evidence": (own_pair - 0.5) * math.log1p(steps),
        "alternation_over_agents_rival": own_pair - agents_rival,
        "alternation_over_own_rival": own_pair - own_rival,
    }


def _following(talk: _Talk) -> dict[str, float]:
    """How often one of the two spoke directly before or after the other."""
    agent, speaker, speakers, n = talk.agent, talk.speaker, talk.speakers, len(talk.speakers)
    after_agent = [speakers[i + 1] for i in talk.agent_at if i + 1 < n]
    before_agent = [speakers[i - 1] for i in talk.agent_at if i > 0]
    before_own = [speakers[i - 1] for i in talk.own_at if i > 0]
    after_own = [speakers[i + 1] for i in talk.own_at if i + 1 < n]
    return {
        "agent_follows_speaker": _share(sum(s == agent for s in after_own), len(after_own), 0.3),
        "speaker_follows_agent": _share(sum(s == agent for s in before_own), len(before_own), 0.3),
        "of_agents_turns_after_speaker": _share(sum(s == speaker for s in before_agent), len(before_agent), 0.3),
        "of_agents_turns_before_speaker": _share(sum(s == speaker for s in after_agent), len(after_agent), 0.3),
    }


def _shared_words(transcript: Transcript, talk: _Talk) -> dict[str, float]:
    """What the last line's words have in common with the lines of each shortly before."""
    content = _content_words(transcript.last.text)
    shared = {"agent": 0.0, "own": 0.0, "others": 0.0}
    for line in transcript.lines[max(0, len(transcript.lines) - 1 - NEAR) : -1]:
        who = "agent" if line.speaker == talk.agent else "own" if line.speaker == talk.speaker else "others"
        shared[who] = max(shared[who], _overlap(content, _content_words(line.text)))
    return {f"shared_with_{who}": value for who, value in shared.items()}


def _wording(transcript: Transcript, talk: _Talk) -> dict[str, float]:
    """How the agent's newest line and the last line are worded."""
    last = transcript.last.text
    agent_last = transcript.lines[talk.agent_at[-1]].text if talk.agent_at else ""
    asked_by_agent = "?" in agent_last
    return {
        "agent_asked": asked_by_agent,
        "agent_asked_first_after": asked_by_agent and bool(talk.agent_at) and talk.spoken_since == 0,
        "agent_words": math.log1p(len(words(agent_last))),
        "question": "?" in last,
        "ends_as_question": last.rstrip().endswith("?"),
        "asks_you": bool(_WH.search(last.lower())),
        "words": math.log1p(len(words(last))),
        "rows": math.log1p(last.count("\n")),
        "ends_open": last.rstrip().endswith(("...", ",", "…", "-", ":")),
        "ends_closed": last.rstrip().endswith((".", "!", "?")),
    }
