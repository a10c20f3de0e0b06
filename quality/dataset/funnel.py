"""From the decision log to rows that may be learned from: each step drops rows, and every dropped row has one reason.

The keys and the fate of each row are in the table `rows` of a scratch DuckDB on disk; texts are in Parquet files of a
few thousand rows beside it, which processes of their own read and write (`quality.dataset.preparation`). `n` numbers
the rows in the order of their time. So memory does not grow with the texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from quality.dataset.duplicates import (
    CONTAINED,
    THRESHOLD,
    Suspect,
    find_contained,
    find_near_duplicates,
    measure_pairs,
    strip_template,
)
from quality.dataset.filters import Cap, Stratum
from quality.dataset.fingerprints import count_levels
from quality.dataset.label_policy import Conflicts
from quality.dataset.preparation import Rules, hash_part, prepare_part
from quality.dataset.selection import count_chosen
from quality.dataset.splits import split_arrays
from quality.dataset.workers import Run
from storage.log.views import sql_text
from storage.progress import OnProgress, Progress

# Why a row is dropped, in the order of the steps.
REASONS = (
    "after_now",
    "expired",
    "filtered",
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
    "leak",
    "over_represented",
)
# A line that stands in the prompts of more than this share of the episodes (three at least) belongs to the template.
TEMPLATE_SHARE = 0.05

WORKERS_FROM = 20_000
"""Fewer rows are prepared in this process: others take a second to start."""

_BATCH = 2_000
_SAMPLE = 4_000  # rows that say which word triples are frequent
_SAMPLE_EPISODES = 4_000  # episodes that say which lines may be the template's
_MOST_PAIRS = 10_000  # of episodes that share one character gram: more is a stock phrase


@dataclass(frozen=True, slots=True)
class Preparation:
    """Counts of what was redacted, by kind, and of why rows were invalid."""

    redactions: dict[str, int]
    faults: dict[str, int]


@dataclass(frozen=True, slots=True)
class Leaks:
    """What rows of different splits have in common: `leak` rows were removed for it, so all counts but two are 0.

    `near_duplicates` counts pairs of a Jaccard similarity of 0.8 or more, `contained` pairs of which one text has most
    of the other. `max_similarity` is the highest similarity that was found between prompts of two splits (their varying
    parts); `compared` counts the prompts that were long enough to be compared.
    """

    shared_episodes: int
    shared_prompts: int
    near_duplicates: int
    compared: int
    max_similarity: float
    contained: int = 0


@dataclass(slots=True)
class Texts:
    """Where the prompts are, what of them is the template's, and what they have in common with others."""

    work: Path
    template: frozenset[str] = frozenset()
    compared: int = 0
    alike: list[tuple[int, int, float]] = field(default_factory=list)
    """Near duplicates with different answers (row, row, similarity)."""
    candidates: list[tuple[int, int]] = field(default_factory=list)
    """Pairs (earlier row, later row) of two splits that may be alike."""

    def read_prompts(self, con: duckdb.DuckDBPyConnection, numbers: Sequence[int]) -> dict[int, str]:
        """The varying parts of some rows' prompts."""
        con.register("wanted", pa.table({"n": pa.array(numbers, pa.int64())}))
        query = f"SELECT n, prompt FROM {_read(self.work, 'prepared')} SEMI JOIN wanted USING (n)"  # noqa: S608
        found = {n: strip_template(prompt, self.template) for n, prompt in con.execute(query).fetchall()}
        con.unregister("wanted")
        return found


def prepare_rows(
    con: duckdb.DuckDBPyConnection, work: Path, rules: Rules, run: Run, *, progress: OnProgress
) -> Preparation:
    """Label, redact and validate the chosen rows. Makes the table `rows`."""
    tasks = [
        (raw, group) for raw in sorted(work.glob("raw-*")) for group in range(pq.read_metadata(raw).num_row_groups)
    ]
    arguments = [(raw, group, work / f"prepared-{i:06}.parquet", rules) for i, (raw, group) in enumerate(tasks)]
    total, done = count_chosen(con), 0
    redactions: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    progress(Progress(0, total, "rows", what="prepare"))
    for rows, redacted, wrong in run(prepare_part, arguments):
        redactions.update(redacted)
        faults.update(wrong)
        done += rows
        progress(Progress(done, total, "rows", what="prepare"))
    for raw in work.glob("raw-*"):
        raw.unlink()
    prepared = _read(work, "prepared") if tasks else _NOTHING_PREPARED
    con.execute(f"""
        CREATE TABLE rows AS
        SELECT s.n, request_id, decision_id, ts, subject_ids, episode_id, label_source,
               agent_id, room_id, model, hash(coalesce(episode_id, request_id::VARCHAR)) AS episode,
               original_latency_ms, original_cost_usd, p.prompt_hash[:32]::UUID AS prompt_hash, p.answer,
               p.dropped, NULL::VARCHAR AS split
        FROM selected AS s LEFT JOIN (SELECT n, prompt_hash, answer, dropped FROM {prepared}) AS p ON s.n = p.n
        ORDER BY s.n
    """)  # noqa: S608 - a path of ours
    con.execute("DROP TABLE selected")
    return Preparation(dict(sorted(redactions.items())), dict(sorted(faults.items())))


_NOTHING_PREPARED = """(SELECT NULL::BIGINT AS n, NULL::VARCHAR AS prompt_hash, NULL::VARCHAR AS answer,
                               NULL::VARCHAR AS dropped, NULL::VARCHAR AS prompt WHERE false)"""


def _read(work: Path, name: str) -> str:
    """SQL that reads the parts of a name."""
    return f"read_parquet({sql_text(str(work / f'{name}-*.parquet'))})"


def drop_duplicates(con: duckdb.DuckDBPyConnection, conflicts: Conflicts) -> None:
    """Of rows with one prompt keep one: of the best label source, and of these by `conflicts` (`label_policy`).

    The others are `duplicate` where their answer is the same, else `contradictory`.
    """
    con.execute(
        """
        WITH repeated AS (
            SELECT prompt_hash FROM rows WHERE dropped IS NULL GROUP BY 1 HAVING count(*) > 1
        ), ranked AS (
            SELECT n, prompt_hash, answer,
                   CASE label_source WHEN 'demonstration' THEN 0 WHEN 'outcome' THEN 1 ELSE 2 END AS source,
                   (-epoch_us(ts), request_id) AS newest,
                   count(*) OVER (PARTITION BY prompt_hash, label_source, answer) AS votes
            FROM rows SEMI JOIN repeated USING (prompt_hash) WHERE dropped IS NULL
        ), kept AS (
            SELECT prompt_hash, arg_min(n, key) AS n, arg_min(answer, key) AS answer,
                   $conflicts = 'drop' AND len(arg_min(answers, source)) > 1 AS none_is_kept
            FROM (SELECT *, (source, CASE WHEN $conflicts = 'majority' THEN -votes ELSE 0 END, newest) AS key,
                         list_distinct(list(answer) OVER (PARTITION BY prompt_hash, source)) AS answers
                  FROM ranked)
            GROUP BY prompt_hash
        )
        UPDATE rows SET dropped = CASE WHEN rows.answer = kept.answer AND NOT none_is_kept THEN 'duplicate'
                                       ELSE 'contradictory' END
        FROM kept
        WHERE rows.prompt_hash = kept.prompt_hash AND (none_is_kept OR rows.n != kept.n) AND rows.dropped IS NULL
        """,
        {"conflicts": conflicts},
    )


def hash_texts(con: duckdb.DuckDBPyConnection, work: Path, run: Run, *, progress: OnProgress) -> Texts:
    """Hash the prompts of the rows that are left, once for both detectors of `quality.dataset.duplicates`."""
    texts = Texts(work, find_template_lines(con, work) if any(work.glob("prepared-*")) else frozenset())
    levels = work / "levels.npy"
    np.save(levels, _sample_levels(con, texts))
    numbers = _column(con, "SELECT n FROM rows WHERE dropped IS NULL ORDER BY n")
    arguments = []
    for part in sorted(work.glob("prepared-*")):
        bounds = pq.read_metadata(part).row_group(0).column(0).statistics
        own = numbers[np.searchsorted(numbers, bounds.min) : np.searchsorted(numbers, bounds.max, side="right")]
        if len(own):
            words, characters = (
                part.with_name(part.name.replace("prepared", name)) for name in ("words", "characters")
            )
            arguments.append((part, own, words, characters, texts.template, levels))
    done = 0
    progress(Progress(0, len(numbers), "rows", what="hash"))
    for each, compared in zip(arguments, run(hash_part, arguments), strict=True):
        texts.compared += compared
        done += len(each[1])
        progress(Progress(done, len(numbers), "rows", what="hash"))
    return texts


def _sample_levels(con: duckdb.DuckDBPyConnection, texts: Texts) -> np.ndarray:
    sample = con.execute(
        """SELECT n, episode FROM (SELECT n, episode, row_number() OVER (ORDER BY n) AS place, count(*) OVER () AS rows
                                   FROM rows WHERE dropped IS NULL)
           WHERE place % greatest(1, rows // ?) = 0 ORDER BY n""",
        [_SAMPLE],
    ).fetchall()
    prompts = texts.read_prompts(con, [n for n, _ in sample]) if sample else {}
    return count_levels([prompts[n] for n, _ in sample], [episode for _, episode in sample])


def drop_near_duplicates(
    con: duckdb.DuckDBPyConnection, texts: Texts, *, limit: int, by_answer: bool, progress: OnProgress
) -> None:
    """Going from the latest row to the oldest, keep `limit` rows that resemble no kept row of another episode.

    With `by_answer` a row that resembles rows of other answers only is kept, and noted in `texts.alike`.
    """
    if any(texts.work.glob("words-*")):
        words = _read(texts.work, "words")
        con.execute(f"""
            CREATE TABLE suspects AS
            WITH shared AS (SELECT gram FROM {words} GROUP BY gram HAVING min("group") != max("group"))
            SELECT n, list(gram ORDER BY gram) AS shared FROM {words} SEMI JOIN shared USING (gram) GROUP BY n
        """)  # noqa: S608 - paths of ours
        found = find_near_duplicates(_suspects(con, texts, progress), by_answer=by_answer)
        con.execute("DROP TABLE suspects")
        texts.alike = found.alike
        _set(con, _SET_DROPPED, [(n, "near_duplicate") for n in found.dropped])
    con.execute(
        """UPDATE rows SET dropped = 'over_limit' WHERE (dropped IS NULL OR dropped = 'near_duplicate') AND n < (
               SELECT min(n) FROM (SELECT n FROM rows WHERE dropped IS NULL ORDER BY n DESC LIMIT ?))""",
        [limit],
    )


def _suspects(con: duckdb.DuckDBPyConnection, texts: Texts, progress: OnProgress) -> Iterator[list[Suspect]]:
    ((total,),) = con.execute("SELECT count(*) FROM suspects").fetchall()
    done = 0
    progress(Progress(0, total, "rows", what="near duplicates"))
    query = "SELECT n, episode, answer, shared FROM suspects JOIN rows USING (n) ORDER BY n DESC"
    for rows in _batches(con, query):
        prompts = texts.read_prompts(con, [row[0] for row in rows])
        yield [Suspect(n, episode, answer, shared, prompts[n]) for n, episode, answer, shared in rows]
        done += len(rows)
        progress(Progress(done, total, "rows", what="near duplicates"))


def find_template_lines(con: duckdb.DuckDBPyConnection, work: Path) -> frozenset[str]:
    """The lines that stand in the prompts of more than `TEMPLATE_SHARE` of the episodes, and of three at least.

    Of many episodes a sample says which lines may be such ones, and only these are counted in all.
    """
    ((episodes,),) = con.execute("SELECT count(DISTINCT episode) FROM rows WHERE dropped IS NULL").fetchall()
    step = max(1, episodes // _SAMPLE_EPISODES)
    lines = f"""
        SELECT DISTINCT episode, unnest(string_split(prompt, '\n')) AS line
        FROM {_read(work, "prepared")} AS p JOIN rows USING (n) WHERE rows.dropped IS NULL
    """  # noqa: S608 - a path of ours
    least = max(3, int(TEMPLATE_SHARE * episodes) + 1)
    counted = "SELECT line, count(*) AS episodes FROM ({lines}) GROUP BY line HAVING count(*) >= ?"
    if step == 1:
        return frozenset(line for line, _ in con.execute(counted.format(lines=lines), [least]).fetchall())
    sample = f"{lines} AND episode % {step} = 0"
    # Half of the share: in a sample of thousands a line of the template is never that rare.
    frequent = con.execute(counted.format(lines=sample), [max(3, least // step // 2)]).fetchall()
    con.register("frequent", pa.table({"line": pa.array([line for line, _ in frequent], pa.string())}))
    found = con.execute(
        f"SELECT line FROM ({lines}) SEMI JOIN frequent USING (line) GROUP BY line HAVING count(*) >= ?",  # noqa: S608
        [least],
    ).fetchall()
    con.unregister("frequent")
    return frozenset(line for (line,) in found)


def assign_splits(
    con: duckdb.DuckDBPyConnection, *, validation_share: float, holdout_share: float
) -> tuple[datetime | None, datetime | None]:
    """Give every kept row its split (`quality.dataset.splits`). Returns where validation and holdout begin."""
    rows = con.sql("SELECT n, epoch_us(ts) AS us, episode FROM rows WHERE dropped IS NULL ORDER BY n").to_arrow_table()
    splits = split_arrays(
        rows["us"].to_numpy(),
        rows["episode"].to_numpy(),
        validation_share=validation_share,
        holdout_share=holdout_share,
    )
    con.register("batch", pa.table({"n": rows["n"], "split": splits.assigned}))
    con.execute(
        """UPDATE rows SET split = ['train', 'validation', 'holdout'][batch.split + 1],
                           dropped = CASE WHEN batch.split < 0 THEN 'boundary_episode' END
           FROM batch WHERE rows.n = batch.n"""
    )
    con.unregister("batch")
    times = (splits.validation_from, splits.holdout_from)
    first, second = (None if us is None else datetime.fromtimestamp(0, UTC) + us * _MICROSECOND for us in times)
    return first, second


_MICROSECOND = datetime.resolution


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


_STRATA: dict[Stratum, str] = {
    "answer": "answer",
    "agent": "agent_id",
    "room": "room_id",
    "episode": "episode",
    "model": "model",
}


def cap_training(con: duckdb.DuckDBPyConnection, cap: Cap, *, seed: int) -> None:
    """Thin out, by a seeded draw, the training rows of each value of a column to those that the cap allows."""
    con.execute(
        f"""UPDATE rows SET dropped = 'over_represented', split = NULL WHERE n IN (
               SELECT n FROM (
                   SELECT n, row_number() OVER (
                       PARTITION BY {_STRATA[cap.stratum]} ORDER BY md5(? || request_id::VARCHAR)) AS place
                   FROM rows WHERE dropped IS NULL AND split = 'train'
               ) WHERE place > ?)""",  # noqa: S608 - a column of ours
        [f"{seed}:", cap.rows],
    )


def drop_leaks(con: duckdb.DuckDBPyConnection, texts: Texts, *, progress: OnProgress) -> None:
    """Drop rows that are too much like a row of a later split: what is tested on stays as it is.

    Looked for are near duplicates of different answers, and texts of which one contains most of the other.
    """
    progress(Progress(0, 1, what="compare splits"))
    con.register("alike", _pairs_table(texts.alike))
    con.execute("""
        UPDATE rows SET dropped = 'leak', split = NULL FROM (
            SELECT least(a.n, b.n) AS n FROM alike
            JOIN rows AS a ON a.n = alike.first JOIN rows AS b ON b.n = alike.second WHERE a.split != b.split
        ) AS leaks WHERE rows.n = leaks.n
    """)
    con.unregister("alike")
    if any(texts.work.glob("characters-*")):
        texts.candidates = _find_candidates(con, texts.work)
    found = find_contained(_across_splits(con, texts), lambda numbers: texts.read_prompts(con, numbers))
    _set(con, _SET_LEAK, [(n, "leak") for n in sorted(found)])
    progress(Progress(1, 1, what="compare splits"))


def _find_candidates(con: duckdb.DuckDBPyConnection, work: Path) -> list[tuple[int, int]]:
    """Pairs (earlier row, later row) of two splits that share chosen character grams."""
    grams = _read(work, "characters")
    con.execute(f"""
        CREATE TEMP TABLE sides AS
        SELECT DISTINCT episode AS "group", list_position(['train', 'validation', 'holdout'], split) AS side
        FROM rows WHERE split IS NOT NULL;
        CREATE TEMP TABLE late AS
        SELECT DISTINCT "group", gram, side FROM {grams} JOIN sides USING ("group") WHERE side > 1;
        CREATE TEMP TABLE early AS
        SELECT DISTINCT "group", gram, side FROM {grams} JOIN sides USING ("group")
        WHERE side < 3 AND gram IN (SELECT gram FROM late);
        CREATE TEMP TABLE episode_pairs AS
        SELECT DISTINCT early."group" AS early, late."group" AS late
        FROM early JOIN late USING (gram)
        WHERE early.side < late.side AND gram NOT IN (
            SELECT gram FROM (SELECT gram, count(*) AS first FROM early GROUP BY gram)
            JOIN (SELECT gram, count(*) AS second FROM late GROUP BY gram) USING (gram)
            WHERE first * second > {_MOST_PAIRS}
        );
        CREATE TEMP TABLE involved AS
        SELECT n, g."group", gram, count(*) OVER (PARTITION BY n) AS grams FROM {grams} AS g JOIN rows USING (n)
        WHERE split IS NOT NULL AND g."group" IN (SELECT early FROM episode_pairs UNION SELECT late FROM episode_pairs);
    """)  # noqa: S608 - paths of ours
    found = con.execute("""
        SELECT a.n, b.n FROM episode_pairs
        JOIN involved AS a ON a."group" = early JOIN involved AS b ON b."group" = late AND a.gram = b.gram
        GROUP BY a.n, b.n HAVING count(*) >= 0.1 * least(any_value(a.grams), any_value(b.grams)) ORDER BY ALL
    """).fetchall()
    con.execute("DROP TABLE sides; DROP TABLE late; DROP TABLE early; DROP TABLE episode_pairs; DROP TABLE involved")
    return found


def _across_splits(con: duckdb.DuckDBPyConnection, texts: Texts) -> list[tuple[int, int]]:
    """Those of the candidates of which both rows are kept."""
    kept = _column(con, "SELECT n FROM rows WHERE split IS NOT NULL ORDER BY n")
    pairs = np.array(texts.candidates, dtype=np.int64).reshape(-1, 2)
    return [(int(a), int(b)) for a, b in pairs[np.isin(pairs, kept).all(axis=1)]]


def find_leaks(con: duckdb.DuckDBPyConnection, texts: Texts) -> Leaks:
    """Compare the splits as they will be written: episodes, whole prompts, and each pair that may be alike.

    The pairs are those that share characters, also for near duplicates, which were looked for by their words before.
    """
    ((shared_episodes, shared_prompts),) = con.execute("""
        SELECT (SELECT count(*) FROM (SELECT episode FROM rows GROUP BY 1 HAVING count(DISTINCT split) > 1)),
               (SELECT count(*) FROM (SELECT prompt_hash FROM rows GROUP BY 1 HAVING count(DISTINCT split) > 1))
    """).fetchall()
    measured = measure_pairs(_across_splits(con, texts), lambda numbers: texts.read_prompts(con, numbers))
    near = sum(similarity >= THRESHOLD for similarity, _ in measured)
    contained = sum(share >= CONTAINED for _, share in measured)
    highest = max((similarity for similarity, _ in measured), default=0.0)
    return Leaks(shared_episodes, shared_prompts, near, texts.compared, round(highest, 4), contained)


def count_answers(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many rows that are not dropped have each answer: the 20 most frequent ones."""
    query = "SELECT answer, count(*) FROM rows WHERE dropped IS NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20"
    return dict(con.execute(query).fetchall())


def count_questions(con: duckdb.DuckDBPyConnection) -> int:
    """How many questions the window has, chosen or not."""
    query = "SELECT (SELECT count(*) FROM rows) + coalesce((SELECT sum(rows) FROM unselected), 0)::BIGINT"
    return int(con.execute(query).fetchall()[0][0])


def count_reasons(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many rows were dropped, by reason, in the order of the steps; reasons that dropped none are left out."""
    query = """
        SELECT dropped, sum(rows)::BIGINT FROM (
            FROM unselected UNION ALL SELECT dropped, 1 FROM rows WHERE dropped IS NOT NULL
        ) GROUP BY 1
    """
    counts = dict(con.execute(query).fetchall())
    return {reason: counts[reason] for reason in REASONS if reason in counts}


def _column(con: duckdb.DuckDBPyConnection, query: str) -> NDArray[np.int64]:
    column: NDArray[np.int64] = con.sql(query).to_arrow_table().column(0).to_numpy()
    return column


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


_SET_DROPPED = "UPDATE rows SET dropped = batch.value FROM batch WHERE rows.n = batch.n"
_SET_LEAK = "UPDATE rows SET dropped = batch.value, split = NULL FROM batch WHERE rows.n = batch.n"


def _pairs_table(pairs: list[tuple[int, int, float]]) -> pa.Table:
    first, second = (pa.array([pair[at] for pair in pairs], pa.int64()) for at in (0, 1))
    return pa.table({"first": first, "second": second})


def _set(con: duckdb.DuckDBPyConnection, statement: str, values: list[tuple[int, str]]) -> None:
    batch = pa.table(
        {"n": pa.array([n for n, _ in values], pa.int64()), "value": pa.array([v for _, v in values], pa.string())}
    )
    con.register("batch", batch)
    con.execute(statement)
    con.unregister("batch")
