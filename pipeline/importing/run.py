"""`reasoning import`: items become decision records, land, and are judged: what could be learned, and would it pay."""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import orjson

import storage
from pipeline.economy.pays import pays
from pipeline.errors import ImportRefused
from pipeline.importing.exports import read_csv, read_langfuse, read_openai, read_otel
from pipeline.importing.items import Item, Skipped
from pipeline.importing.sessions import read_claude_code, read_codex
from prices.models import find_price
from prices.settings import load_prices
from quality.dataset.statistics import summarize_log
from reasoning.config import Config, load_config
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.errors import RecordError, UnparseableAnswer, Unredactable
from reasoning.io.spool import SegmentWriter
from reasoning.records import Decision, Feedback
from reasoning.redaction.prompts import redact_answer, redact_prompt
from storage.layout import Layout
from storage.log.land import land_decisions
from storage.progress import OnProgress, Progress

Source = Literal["claude-code", "codex", "otel", "langfuse", "openai-jsonl", "csv"]
READERS: dict[str, Callable[[Path, Skipped], Iterator[Item]]] = {
    "claude-code": read_claude_code,
    "codex": read_codex,
    "otel": read_otel,
    "langfuse": read_langfuse,
    "openai-jsonl": read_openai,
    "csv": read_csv,
}
AUTHOR = "import"
_MOST_LABELS = 12
_LONGEST_LABEL = 40
_LABELLED_SHARE = 0.95
_REPORT_EVERY = 500


@dataclass(frozen=True, slots=True)
class Candidate:
    """A name in the source that is no declared decision type: how often it is asked, and the command that declares it.

    `labels` are its answers where they are few and short; empty where they are free text.
    """

    name: str
    items: int
    labels: list[str]
    declare: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did. `added` decisions are new; `known` ones the log already had; `skipped` counts by reason.

    `learn` says by decision type what could be learned, `worth` whether a model would pay, `candidates` what is in the
    source besides declared types.
    """

    read: int
    added: int
    known: int
    labels: int
    redacted: dict[str, int]
    skipped: dict[str, int]
    quarantined: dict[str, int]
    learn: list[dict[str, Any]]
    worth: list[dict[str, Any]]
    candidates: list[Candidate]


@dataclass(slots=True)
class _Import:
    """The state of one import."""

    source: str
    config: Config
    decision_type: str | None
    names: frozenset[str]
    agent: str | None
    now: datetime
    known_keys: set[str]
    prices: Any
    read: int = 0
    known: int = 0
    labels: int = 0
    types: set[str] = field(default_factory=set)
    skipped: Skipped = field(default_factory=Skipped)
    redacted: Counter[str] = field(default_factory=Counter)
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    """Of names that are no declared type: their answers, as many as `_MOST_LABELS` and one for all others."""


def import_decisions(
    data: Path,
    source: Source,
    path: Path,
    *,
    decision_type: str | None = None,
    names: Iterable[str] = (),
    agent: str | None = None,
    now: datetime | None = None,
    progress: OnProgress | None = None,
) -> ImportReport:
    """Import a file or folder of another system into a data folder, and land it.

    `decision_type` is that of all items; without it an item is of the declared type that its name says, and the others
    are `candidates`. Only items of these `names` are taken. Ids are derived from the source, so that the same again
    adds nothing. Prompts and answers are redacted as at an export. Raises `ImportRefused`, `UnknownDecisionType`,
    `DataFolderError`.
    """
    if decision_type is not None:
        get_decision_type(decision_type, load_config(data))
    report, now = progress or (lambda _: None), now or datetime.now(UTC)
    layout = Layout(data).check()
    done = _Import(
        source=source,
        config=load_config(data),
        decision_type=decision_type,
        names=frozenset(names),
        agent=agent,
        now=now,
        known_keys=_known_keys(data),
        prices=load_prices().models,
    )
    if not path.exists():
        raise ImportRefused(f"{path}: there is no such file or folder; give what was exported")
    modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    writer = SegmentWriter(layout.spool)
    try:
        for item in READERS[source](path, done.skipped):
            for record in _records(done, item, min(modified, now)):
                if not writer.write(record):
                    raise ImportRefused(f"{layout.spool} takes no more records; free the disk and import again")
            if done.read % _REPORT_EVERY == 0:
                report(Progress(done.read, 0, "items", what="read"))
    finally:
        writer.close()
    landed = land_decisions(data, now=now)
    types = sorted(done.types)
    return ImportReport(
        read=done.read,
        added=landed.decisions,
        known=done.known + landed.duplicates,
        labels=done.labels,
        redacted=dict(sorted(done.redacted.items())),
        skipped=dict(sorted(done.skipped.counts.items())),
        quarantined=landed.quarantined,
        learn=[_learnable(each) for each in summarize_log(data, now=now) if each.decision_type in types],
        worth=[
            {"decision_type": each.decision_type, "verdict": each.verdict, "why": each.why}
            for name in types
            for each in pays(data, name, now=now)
        ],
        candidates=_candidates(done),
    )


def _known_keys(data: Path) -> set[str]:
    query = "SELECT DISTINCT json_extract_string(tags, '$.import') FROM decisions WHERE contains(tags, '\"import\"')"
    return {key for (key,) in storage.sql(data, query).rows if key}


def _records(done: _Import, item: Item, modified: datetime) -> Iterator[Decision | Feedback]:
    """The records of an item that is wanted and new: a decision, and a demonstration of its right answer if known."""
    done.read += 1
    if done.names and item.name not in done.names:
        done.skipped.add("another name")
        return
    kind = _kind(done, item)
    if kind is None:
        _note_answer(done, item)
        return
    if item.ts is not None and done.now - item.ts > timedelta(days=done.config.max_days_behind):
        done.skipped.add(f"older than {done.config.max_days_behind:g} days (max_days_behind)")
        return
    digest = hashlib.sha256(f"{done.source}\0{kind.name}\0{item.key}".encode()).digest()
    tag = f"{done.source}:{digest.hex()[:24]}"
    done.types.add(kind.name)
    if tag in done.known_keys:
        done.known += 1
        return
    done.known_keys.add(tag)
    try:
        decision = _decision(done, item, kind, digest, tag, modified)
    except (Unredactable, RecordError) as error:
        done.skipped.add(f"cannot be redacted: {error}"[:80])
        return
    yield decision
    if item.right is not None and (label := _label(kind, item.right, decision)) is not None:
        done.labels += 1
        yield Feedback(
            feedback_id=derived_id(decision.ts, digest, 2),
            ts=decision.ts,
            metric="demonstration",
            value=orjson.dumps(label).decode(),
            kind="demonstration",
            decision_id=decision.decision_id,
            author=AUTHOR,
        )


def _kind(done: _Import, item: Item) -> DecisionType | None:
    """The declared type of an item: the one that was asked for, else the one that its name says."""
    types = done.config.decision_types
    return types.get(done.decision_type or item.name.strip().lower().replace("-", "_").replace(" ", "_"))


def _note_answer(done: _Import, item: Item) -> None:
    done.skipped.add("of no declared decision type")
    counts = done.answers.setdefault(item.name, Counter())
    answer = " ".join(item.answer.split())
    is_short = len(answer) <= _LONGEST_LABEL
    counts[answer if is_short and (answer in counts or len(counts) <= _MOST_LABELS) else ""] += 1


def _candidates(done: _Import) -> list[Candidate]:
    found = []
    for name, counts in sorted(done.answers.items(), key=lambda each: (-each[1].total(), each[0])):
        labels = [answer for answer, _ in counts.most_common() if answer]
        few = 2 <= len(labels) <= _MOST_LABELS and counts.total() - counts[""] >= _LABELLED_SHARE * counts.total()
        plain = "".join(letter if letter.isalnum() else "_" for letter in name.lower()).strip("_") or "own"
        # People paste this into a shell, and the labels are anyone's text. `--type` splits at commas and colons.
        can_declare = few and all(label.isprintable() and not set(label) & set(",:") for label in labels)
        declare = shlex.join(["reasoning", "init", "--type", f"{plain}={','.join(labels)}"]) if can_declare else ""
        found.append(Candidate(name, counts.total(), labels if few else [], declare))
    return found


def _decision(done: _Import, item: Item, kind: DecisionType, digest: bytes, tag: str, modified: datetime) -> Decision:
    region = done.config.redaction.region
    prompt = redact_prompt(item.messages, region=region)
    answer, found = redact_answer(prompt, item.answer, region=region)
    done.redacted.update(prompt.counts)
    done.redacted.update(found)
    try:
        parsed: dict[str, Any] | None = kind.parse_reply(answer, prompt.messages)
    except UnparseableAnswer:
        parsed = _bare_label(kind, answer)
    if parsed is None:
        done.skipped.add(f"imported, and no answer of {kind.name}")
    ts = item.ts or modified
    cost, price_source = item.cost_usd, "reported" if item.cost_usd is not None else None
    if cost is None and item.input_tokens is not None and item.output_tokens is not None:
        price = find_price(done.prices, item.model, ts=ts)
        if price is not None:
            cost = price.cost_usd(
                input=item.input_tokens,
                output=item.output_tokens,
                cache_read=item.cache_read_tokens or 0,
                cache_write=item.cache_write_tokens or 0,
            )
            price_source = price.source
    inputs = (
        None
        if item.input_tokens is None
        else (item.input_tokens + (item.cache_read_tokens or 0) + (item.cache_write_tokens or 0))
    )
    return Decision(
        decision_id=derived_id(ts, digest, 0),
        request_id=derived_id(ts, digest, 1),
        ts=ts,
        decision_type=kind.name,
        source="original",
        served=True,
        messages=prompt.messages,
        agent_id=done.agent or item.agent or done.config.agent_id or done.source,
        episode_id=item.episode,
        subject_ids=item.subjects,
        completion=kind.format_answer(parsed) if parsed is not None and kind.labels else answer,
        decision=parsed,
        valid=parsed is not None,
        latency_ms=item.latency_ms,
        input_tokens=inputs,
        output_tokens=item.output_tokens,
        cache_read_tokens=item.cache_read_tokens,
        cache_write_tokens=item.cache_write_tokens,
        cost_usd=cost,
        price_source=price_source,
        fallback_model=item.model,
        tags={"import": tag} | ({"untranslated": item.lacks} if item.lacks else {}),
    )


def _bare_label(kind: DecisionType, answer: str) -> dict[str, Any] | None:
    """The decision where the answer of a label type is just the label, or JSON that has it as its only text."""
    try:
        said = orjson.loads(answer) if answer.lstrip()[:1] == "{" else answer
        if isinstance(said, dict) and "action" not in said and len(said) == 1:
            said = next(iter(said.values()))
        return kind.normalize(said.strip() if isinstance(said, str) else said) if kind.labels else None
    except (UnparseableAnswer, orjson.JSONDecodeError, TypeError):
        return None


def _label(kind: DecisionType, right: str, decision: Decision) -> dict[str, Any] | None:
    if decision.decision is not None and decision.completion == right:
        return decision.decision
    try:
        return kind.parse_reply(right, decision.messages)
    except UnparseableAnswer:
        return _bare_label(kind, right)


def derived_id(ts: datetime, digest: bytes, number: int) -> UUID:
    """A UUIDv7 of `ts` whose random bits come from `digest`: the same item has the same ids at every import."""
    bits = int.from_bytes(hashlib.sha256(digest + bytes([number])).digest()[:10])
    ms = int(ts.timestamp() * 1000)
    return UUID(int=ms << 80 | 7 << 76 | (bits >> 62 & 0xFFF) << 64 | 0b10 << 62 | bits & ((1 << 62) - 1))


def _learnable(each: Any) -> dict[str, Any]:
    return {
        "decision_type": each.decision_type,
        "questions": each.questions,
        "labelled": each.verdict.rows,
        "episodes": each.verdict.episodes,
        "verdict": each.verdict.level,
        "advice": " ".join(each.verdict.advice),
    }
