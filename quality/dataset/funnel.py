"""From the decision log to rows that may be learned from: each step drops rows, and every dropped row has one reason.

The rows live in a scratch DuckDB on disk, in the tables `rows` (keys and fate of each) and `texts` (what is written),
so memory stays bounded: Python holds one batch of rows, and half a kilobyte for every row that is kept.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa

import storage
from quality.dataset.duplicates import THRESHOLD, NearDuplicateIndex, strip_template
from quality.dataset.label_policy import Conflicts, LabelPolicy, labels_query
from quality.dataset.labels import format_completion
from quality.dataset.splits import SPLITS, split_rows
from reasoning.decision_types import DecisionType
from reasoning.errors import UnparseableAnswer, Unredactable
from reasoning.redaction.prompts import redact_answer, redact_prompt
from storage.progress import OnProgress, Progress
from storage.training_rows import MAX_CHARACTERS, find_row_fault, row_length

# Why a row is dropped, in the order of the steps.
REASONS = (
    "after_now",
    "expired",
    "no_label",
    "self_label",
    "ruled_out",
    "weaker_label",
    "tools",
    "untranslated",
    "invalid",
    "unredactable",
    "too_long",
    "duplicate",
    "contradictory",
    "near_duplicate",
    "over_limit",
    "boundary_episode",
    "over_represented",
)
# A line that stands in the prompts of more than this share of the episodes (three at least) belongs to the template.
TEMPLATE_SHARE = 0.05

# So many times the limit of the latest rows are looked at: work is bounded by what is wanted, not by the log.
LOOKED_AT = 4

_BATCH = 2_000
_MEMORY_LIMIT = "1GB"


_SELECT = """
CREATE OR REPLACE TABLE scratch.selected AS
SELECT l.request_id, l.decision_id, l.ts, l.episode_id, l.messages, l.label, l.label_source,
       list_sort(list_distinct(list_append(l.subject_ids, l.demonstrated_by))) AS subject_ids,
       l.original_decision, o.latency_ms AS original_latency_ms, o.cost_usd AS original_cost_usd,
       CASE
           WHEN l.ts > $now THEN 'after_now'
           WHEN l.ts < $expired_before THEN 'expired'
           WHEN l.label IS NULL THEN 'no_label'
           WHEN l.label_source = 'custom' THEN 'self_label'
           WHEN l.ruled_out THEN 'ruled_out'
           WHEN l.tools IS NOT NULL AND NOT contains(l.messages[1].content, '<tools>') THEN 'tools'
           WHEN json_extract_string(l.tags, '$.untranslated') IS NOT NULL THEN 'untranslated'
       END AS dropped
FROM ({labels}) AS l
LEFT JOIN decisions AS o
    ON o.date = l.date AND o.decision_type = l.decision_type AND o.decision_id = l.original_decision_id
ORDER BY l.ts, l.request_id
"""
_WHERE = """l.decision_type = $decision_type
  AND ($since::TIMESTAMPTZ IS NULL OR (l.ts >= $since AND l.date >= $since_date::DATE))
  AND ($before::TIMESTAMPTZ IS NULL OR (l.ts < $before AND l.date <= $before_date::DATE))"""
_PREPARED = pa.schema(
    [
        ("n", pa.int64()),
        ("dropped", pa.string()),
        ("line", pa.string()),
        ("prompt", pa.string()),
        ("prompt_hash", pa.string()),
        ("answer", pa.string()),
        ("original", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Preparation:
    """Counts of what was redacted, by kind, and of why rows were invalid."""

    redactions: dict[str, int]
    faults: dict[str, int]


@dataclass(frozen=True, slots=True)
class Leaks:
    """What rows of different splits have in common. Everything but `compared` and `max_similarity` is 0 in a sound set.

    `max_similarity` is the highest Jaccard similarity that was found between prompts of two splits (their varying
    parts); `compared` counts the prompts that were long enough to be compared.
    """

    shared_episodes: int
    shared_prompts: int
    near_duplicates: int
    compared: int
    max_similarity: float


def select_rows(
    data: Path | str,
    scratch: Path,
    decision_type: str,
    *,
    since: datetime | None,
    before: datetime | None,
    now: datetime,
    expired_before: datetime | None,
    policy: LabelPolicy,
) -> duckdb.DuckDBPyConnection:
    """Copy the rows of one type with since <= ts < before out of the log into the new database file `scratch`."""
    parameters = {
        "decision_type": decision_type,
        "since": since,
        "before": before,
        # DuckDB itself would cast by the zone of this machine.
        "since_date": None if since is None else since.date(),
        "before_date": None if before is None else before.date(),
        "now": now,
        "expired_before": expired_before,
    }
    path = str(scratch).replace("'", "''")

    def copy(log: duckdb.DuckDBPyConnection) -> None:
        log.execute("SET enable_progress_bar = false")  # what is shown is the caller's business
        log.execute(f"ATTACH IF NOT EXISTS '{path}' AS scratch")
        log.execute(_SELECT.format(labels=labels_query(policy, _WHERE)), parameters)
        log.execute("DETACH scratch")

    storage.read(data, copy, memory_limit=_MEMORY_LIMIT)
    con = duckdb.connect(str(scratch), config={"temp_directory": f"{scratch}.spill", "memory_limit": _MEMORY_LIMIT})
    con.execute("SET enable_progress_bar = false")
    return con


def choose_label_sources(con: duckdb.DuckDBPyConnection, enough: int) -> list[str]:
    """Demonstrations and outcomes alone where there are `enough` of them; else the original logic's answers as well.

    What really was right teaches more than what the original logic thought, which would only be imitated.
    """
    ((demonstrations, outcomes),) = con.execute("""
        SELECT count(*) FILTER (label_source = 'demonstration'), count(*) FILTER (label_source = 'outcome')
        FROM selected WHERE dropped IS NULL
    """).fetchall()
    known = ["demonstration", *(["outcome"] if outcomes else [])]
    return known if demonstrations + outcomes >= enough else [*known, "original"]


def prepare_rows(
    con: duckdb.DuckDBPyConnection,
    decision_type: DecisionType,
    *,
    label_sources: Sequence[str],
    limit: int,
    max_characters: int,
    region: str,
    progress: OnProgress,
) -> Preparation:
    """Label, redact and validate the latest rows, four times as many as the limit lets through."""
    con.execute(
        "UPDATE selected SET dropped = 'weaker_label' WHERE dropped IS NULL AND NOT list_contains(?, label_source)",
        [list(label_sources)],
    )
    con.execute(
        """UPDATE selected SET dropped = 'over_limit' WHERE dropped IS NULL AND rowid NOT IN (
               SELECT rowid FROM selected WHERE dropped IS NULL ORDER BY ts DESC, request_id DESC LIMIT ?)""",
        [LOOKED_AT * limit],
    )
    con.execute(
        "CREATE TABLE prepared (n BIGINT, dropped VARCHAR, line VARCHAR, prompt VARCHAR, prompt_hash VARCHAR, "
        "answer VARCHAR, original VARCHAR)"
    )
    ((total,),) = con.execute("SELECT count(*) FROM selected WHERE dropped IS NULL").fetchall()
    redactions: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    done = 0
    progress(Progress(0, total, "rows", what="prepare"))
    query = "SELECT rowid, messages, label, original_decision FROM selected WHERE dropped IS NULL"
    for rows in _batches(con, query):
        prepared = [
            {"n": n, **_prepare(decision_type, messages, label, original, max_characters, region, redactions, faults)}
            for n, messages, label, original in rows
        ]
        batch = pa.Table.from_pylist(prepared, schema=_PREPARED)
        con.register("batch", batch)
        con.execute("INSERT INTO prepared SELECT * FROM batch")
        con.unregister("batch")
        done += len(rows)
        progress(Progress(done, total, "rows", what="prepare"))
    con.execute("""
        CREATE TABLE rows AS
        SELECT s.rowid AS n, request_id, decision_id, ts, subject_ids,
               episode_id, coalesce(episode_id, request_id::VARCHAR) AS episode, label_source,
               original_latency_ms, original_cost_usd, prompt_hash, answer,
               coalesce(s.dropped, p.dropped) AS dropped, NULL::VARCHAR AS split
        FROM selected AS s LEFT JOIN prepared AS p ON s.rowid = p.n
    """)
    con.execute("CREATE TABLE texts AS SELECT n, line, prompt, original FROM prepared WHERE dropped IS NULL ORDER BY n")
    con.execute("DROP TABLE selected; DROP TABLE prepared")
    return Preparation(dict(sorted(redactions.items())), dict(sorted(faults.items())))


def _prepare(
    decision_type: DecisionType,
    messages: list[dict[str, str]],
    label: str,
    original: str | None,
    max_characters: int,
    region: str,
    redactions: Counter[str],
    faults: Counter[str],
) -> dict[str, Any]:
    try:
        raw = format_completion(decision_type, label)
        decision_type.parse_reply(raw, messages)
    except UnparseableAnswer as error:
        faults[f"label: {error}"] += 1
        return {"dropped": "invalid"}
    try:
        redacted = redact_prompt(
            [{"role": message["role"], "content": message["content"]} for message in messages], region=region
        )
        answer, found = redact_answer(redacted, raw, region=region)
        original = None if original is None else redact_answer(redacted, original, region=region)[0]
    except Unredactable as error:
        faults[str(error)] += 1
        return {"dropped": "unredactable"}
    prompt = redacted.messages
    try:
        decision = decision_type.parse_reply(answer, prompt)
        redacted.restore_decision(decision)
    except UnparseableAnswer as error:
        # It was an answer before, so what was found in it is a part of its form; or it acts on what the prompt lacks.
        faults[f"redacted label: {error}"] += 1
        return {"dropped": "unredactable"}
    row: dict[str, Any] = {"messages": [*prompt, {"role": "assistant", "content": answer}]}
    if fault := find_row_fault(row, max_characters=None):  # a row that is too long has a reason of its own
        faults[fault] += 1
        return {"dropped": "invalid"}
    if row_length(row) > min(max_characters, MAX_CHARACTERS):
        return {"dropped": "too_long"}
    redactions.update(redacted.counts)
    redactions.update(found)
    text = "\n".join(message["content"] for message in prompt)
    return {
        "line": orjson.dumps(row).decode(),
        "prompt": text,
        "prompt_hash": hashlib.sha256(orjson.dumps(prompt)).hexdigest(),
        "answer": decision_type.form.answer_class(decision),
        "original": original,
    }


def drop_duplicates(con: duckdb.DuckDBPyConnection, conflicts: Conflicts) -> None:
    """Of rows with one prompt keep one: of the best label source, and of these by `conflicts` (`label_policy`).

    The others are `duplicate` where their answer is the same, else `contradictory`.
    """
    con.execute(
        """
        WITH ranked AS (
            SELECT n, prompt_hash, answer, -epoch_us(ts) AS newest, request_id,
                   CASE label_source WHEN 'demonstration' THEN 0 WHEN 'outcome' THEN 1 ELSE 2 END AS source,
                   count(*) OVER (PARTITION BY prompt_hash, label_source, answer) AS votes
            FROM rows WHERE dropped IS NULL
        ), kept AS (
            SELECT prompt_hash, arg_min(n, key) AS n, arg_min(answer, key) AS answer,
                   $conflicts = 'drop' AND len(arg_min(answers, source)) > 1 AS none_is_kept
            FROM (SELECT *, (source, CASE WHEN $conflicts = 'majority' THEN -votes ELSE 0 END, newest, request_id)
                             AS key,
                         list_distinct(list(answer) OVER (PARTITION BY prompt_hash, source)) AS answers
                  FROM ranked)
            GROUP BY prompt_hash HAVING count(*) > 1
        )
        UPDATE rows SET dropped = CASE WHEN rows.answer = kept.answer AND NOT none_is_kept THEN 'duplicate'
                                       ELSE 'contradictory' END
        FROM kept
        WHERE rows.prompt_hash = kept.prompt_hash AND (none_is_kept OR rows.n != kept.n) AND rows.dropped IS NULL
        """,
        {"conflicts": conflicts},
    )


def drop_near_duplicates(con: duckdb.DuckDBPyConnection, *, limit: int, progress: OnProgress) -> frozenset[str]:
    """Going from the latest row to the oldest, keep `limit` rows that resemble no kept row of another episode.

    Returns the lines that were taken for the template's.
    """
    template = find_template_lines(con)
    ((total,),) = con.execute("SELECT count(*) FROM rows WHERE dropped IS NULL").fetchall()
    index = NearDuplicateIndex(lambda n: strip_template(_read_prompt(con, n), template))
    fates: list[tuple[int, str]] = []
    kept = done = 0
    query = """SELECT n, episode, prompt FROM rows JOIN texts USING (n)
               WHERE dropped IS NULL ORDER BY ts DESC, request_id DESC"""
    for rows in _batches(con, query):
        for n, episode, prompt in rows:
            if kept >= limit:
                fates.append((n, "over_limit"))
                continue
            text = strip_template(prompt, template)
            match = index.find(text, episode)
            if match is not None and match.similarity >= THRESHOLD:
                fates.append((n, "near_duplicate"))
                continue
            index.add(n, text, episode)
            kept += 1
        done += len(rows)
        progress(Progress(done, total, "rows", what="near duplicates"))
    _set(con, _SET_DROPPED, fates)
    return template


def find_template_lines(con: duckdb.DuckDBPyConnection) -> frozenset[str]:
    """The lines that stand in the prompts of more than `TEMPLATE_SHARE` of the episodes, and of three at least."""
    return frozenset(
        line
        for (line,) in con.execute(
            """
            WITH lines AS (
                SELECT DISTINCT episode, unnest(string_split(prompt, '\n')) AS line
                FROM rows JOIN texts USING (n) WHERE dropped IS NULL
            )
            SELECT line FROM lines GROUP BY line
            HAVING count(*) >= 3
               AND count(*) > ? * (SELECT count(DISTINCT episode) FROM rows WHERE dropped IS NULL)
            """,
            [TEMPLATE_SHARE],
        ).fetchall()
    )


def assign_splits(
    con: duckdb.DuckDBPyConnection, *, validation_share: float, holdout_share: float
) -> tuple[datetime | None, datetime | None]:
    """Give every kept row its split (`quality.dataset.splits`). Returns where validation and holdout begin."""
    rows = con.execute("SELECT n, ts, episode FROM rows WHERE dropped IS NULL ORDER BY ts, request_id").fetchall()
    splits = split_rows(
        [ts for _, ts, _ in rows],
        [episode for _, _, episode in rows],
        validation_share=validation_share,
        holdout_share=holdout_share,
    )
    assigned = [(n, split) for (n, _, _), split in zip(rows, splits.assigned, strict=True)]
    _set(con, _SET_SPLIT, [(n, split) for n, split in assigned if split is not None])
    _set(con, _SET_DROPPED, [(n, "boundary_episode") for n, split in assigned if split is None])
    return splits.validation_from, splits.holdout_from


def balance_training(con: duckdb.DuckDBPyConnection, *, max_class_share: float, seed: int) -> None:
    """Thin out, by a seeded draw, the answers that make up more than `max_class_share` of the training rows.

    Validation and holdout keep the shares that the model will meet.
    """
    counts = dict(
        con.execute("SELECT answer, count(*) FROM rows WHERE dropped IS NULL AND split = 'train' GROUP BY 1").fetchall()
    )
    if len(counts) < 2:
        return
    largest = max(counts, key=lambda answer: (counts[answer], answer))
    others = sum(counts.values()) - counts[largest]
    allowed = int(others * max_class_share / (1 - max_class_share))
    con.execute(
        """UPDATE rows SET dropped = 'over_represented', split = NULL WHERE n IN (
               SELECT n FROM rows WHERE dropped IS NULL AND split = 'train' AND answer = ?
               ORDER BY md5(? || request_id::VARCHAR) OFFSET ?)""",
        [largest, f"{seed}:", allowed],
    )


def find_leaks(con: duckdb.DuckDBPyConnection, template: frozenset[str], progress: OnProgress) -> Leaks:
    """Compare each split with the earlier ones: episodes, whole prompts, and near duplicates, found anew."""
    ((shared_episodes, shared_prompts),) = con.execute("""
        SELECT (SELECT count(*) FROM (SELECT episode FROM rows GROUP BY 1 HAVING count(DISTINCT split) > 1)),
               (SELECT count(*) FROM (SELECT prompt_hash FROM rows GROUP BY 1 HAVING count(DISTINCT split) > 1))
    """).fetchall()
    index = NearDuplicateIndex(lambda n: strip_template(_read_prompt(con, n), template))
    near, compared, highest = 0, 0, 0.0
    for number, split in enumerate(SPLITS):
        progress(Progress(number, len(SPLITS), "splits", what="compare splits"))
        if number > 0:
            for _, episode, prompt in _rows_of(con, split):
                if match := index.find(strip_template(prompt, template), episode):
                    highest = max(highest, match.similarity)
                    near += match.similarity >= THRESHOLD
        for n, episode, prompt in _rows_of(con, split):
            compared += index.add(n, strip_template(prompt, template), episode)
    progress(Progress(len(SPLITS), len(SPLITS), "splits", what="compare splits"))
    return Leaks(shared_episodes, shared_prompts, near, compared, round(highest, 4))


def count_answers(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many rows that are not dropped have each answer: the 20 most frequent ones."""
    query = "SELECT answer, count(*) FROM rows WHERE dropped IS NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20"
    return dict(con.execute(query).fetchall())


def count_reasons(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many rows were dropped, by reason, in the order of the steps; reasons that dropped none are left out."""
    counts = dict(con.execute("SELECT dropped, count(*) FROM rows WHERE dropped IS NOT NULL GROUP BY 1").fetchall())
    return {reason: counts[reason] for reason in REASONS if reason in counts}


def _rows_of(con: duckdb.DuckDBPyConnection, split: str) -> Iterator[tuple[Any, ...]]:
    query = "SELECT n, episode, prompt FROM rows JOIN texts USING (n) WHERE split = ? ORDER BY ts, request_id"
    for rows in _batches(con, query, [split]):
        yield from rows


def _batches(
    con: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[Any] = ()
) -> Iterator[list[tuple[Any, ...]]]:
    # A cursor is a connection of its own: the caller may run other statements between batches.
    cursor = con.cursor()
    try:
        cursor.execute(query, parameters)
        while rows := cursor.fetchmany(_BATCH):
            yield rows
    finally:
        cursor.close()


def _read_prompt(con: duckdb.DuckDBPyConnection, n: int) -> str:
    ((prompt,),) = con.execute("SELECT prompt FROM texts WHERE n = ?", [n]).fetchall()
    return str(prompt)


_SET_DROPPED = "UPDATE rows SET dropped = batch.value FROM batch WHERE rows.n = batch.n"
_SET_SPLIT = "UPDATE rows SET split = batch.value FROM batch WHERE rows.n = batch.n"


def _set(con: duckdb.DuckDBPyConnection, statement: str, values: list[tuple[int, str]]) -> None:
    batch = pa.table(
        {"n": pa.array([n for n, _ in values], pa.int64()), "value": pa.array([v for _, v in values], pa.string())}
    )
    con.register("batch", batch)
    con.execute(statement)
    con.unregister("batch")
