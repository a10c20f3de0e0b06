"""The decision log as SQL: an in-memory DuckDB whose views read a snapshot of the Parquet files.

====================  ================================================================================================
view                  one row per
====================  ================================================================================================
`decisions`           answer (docs/concepts/architecture.md, "Records"), with the partitions `decision_type` and `date`
`feedback`            decision or episode, kind and metric: the latest
`feedback_log`        feedback ever given
`labelled_decisions`  question (`request_id`): the answer that was served, with the label and what both sides answered
`costs`               charge in the ledger
`models`              model in the ledger
====================  ================================================================================================
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import TableError
from storage.lake.engine import attach_lake
from storage.layout import Layout
from storage.ledger.streams import cost_stream, model_stream
from storage.log.home import lake_address
from storage.log.read_only import LogFiles, check_is_query, lock_down, refusal
from storage.log.schema import PARTITIONS, sql_columns
from storage.log.table import Snapshot, naming_unreadable, take_snapshot

T = TypeVar("T")

_ATTEMPTS = 100


def connect(
    data: Path | str, *, memory_limit: str | None = None, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """Open the decision log of a data folder for SQL.

    The views show the files as of now: rows that land later need a new connection or `refresh`. No file is open
    between queries, and nothing is locked, so a compaction may replace files that a query is about to read; the query
    then fails with `duckdb.IOException`, never silently. `read` and `sql` take care of that; with a connection of your
    own, `refresh` it and run the query again.

    `memory_limit` ("1GB") and `threads` are DuckDB's settings. Raises `DataFolderError`, and `TableError` where a file
    is damaged.
    """
    return _connect(Layout(data).check(), memory_limit, threads)


def _connect(
    layout: Layout, memory_limit: str | None, threads: int | None, files: LogFiles | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection with the views; with `files` they read through it, and the connection can do nothing else."""
    con = open_engine(memory_limit, threads)
    if (address := lake_address(layout)) is not None:
        if files is not None:
            raise refusal("a log in a lake (REASONING_LOG) cannot be locked down yet")
        attach_lake(con, layout, address)
    if files is not None:
        con.register_filesystem(files)
    _create_views(con, layout)
    _with_snapshot(con, layout, lambda con: None, files)
    if files is not None:
        lock_down(con)
    return con


def open_engine(memory_limit: str | None = None, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory with our settings and no view: what `connect` and whoever rewrites files build on."""
    spill = Path(tempfile.gettempdir()) / f"reasoning-duckdb-{os.getpid()}-{uuid4().hex}"  # made only when needed
    config: dict[str, Any] = {"temp_directory": str(spill)}
    if memory_limit is not None:
        config["memory_limit"] = memory_limit
    if threads is not None:
        config["threads"] = threads
    con = duckdb.connect(config=config)
    # Not in the config: what these are of is loaded only after connecting.
    con.execute("SET TimeZone = 'UTC'")
    con.execute("SET parquet_metadata_cache = true")  # to read a month's footers is half of a look-up by id
    return con


def refresh(con: duckdb.DuckDBPyConnection, data: Path | str) -> None:
    """Let the views of a connection show the files as of now."""
    _with_snapshot(con, Layout(data), lambda con: None)


def show(con: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    """Let the views of a connection show these files."""
    _show(con, snapshot)


def read(
    data: Path | str,
    function: Callable[[duckdb.DuckDBPyConnection], T],
    *,
    memory_limit: str | None = None,
    threads: int | None = None,
) -> T:
    """`function(connection)`, called again with a fresh snapshot whenever files that it was reading were replaced.

    The function must fetch its rows itself and must be safe to call again. It runs in its own thread, so that Ctrl-C
    ends its queries.
    """
    with connect(data, memory_limit=memory_limit, threads=threads) as con:
        return _interruptible(con, lambda con: _with_snapshot(con, Layout(data), function))


def _interruptible(con: duckdb.DuckDBPyConnection, function: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
    """`function(connection)` in a thread of its own: DuckDB hears Ctrl-C late or, in a large join, never."""
    with ThreadPoolExecutor(1, thread_name_prefix="sql") as executor:
        future = executor.submit(copy_context().run, function, con)
        try:
            return future.result()
        except BaseException:
            while not future.done():  # again and again: between two queries there is nothing to interrupt
                con.interrupt()
                wait([future], timeout=0.1)
            raise


def _with_snapshot(
    con: duckdb.DuckDBPyConnection, layout: Layout, function: Callable[..., T], files: LogFiles | None = None
) -> T:
    if lake_address(layout) is not None:  # a query sees one snapshot of it, and no file goes while it is read
        _show_lake(con)
        return function(con)
    for _ in range(_ATTEMPTS):
        snapshot = take_snapshot(layout)
        try:
            _show(con, snapshot, files)
            return function(con)
        except duckdb.IOException:
            if take_snapshot(layout) == snapshot:
                raise  # the files are unchanged: this is another problem
        except duckdb.Error as error:
            if type(error) is not duckdb.Error or (files is not None and files.refused):
                raise
            # Of no kind: that is how DuckDB fails where a file of `log://` is gone, and inside a damaged file, and does
            # not say which one.
            if files is not None and take_snapshot(layout) != snapshot:
                continue
            with naming_unreadable([*snapshot.decisions, *snapshot.feedback]):
                raise
    raise TableError(f"files of {layout.data} were replaced {_ATTEMPTS} times while they were being read; try later")


@dataclass(frozen=True)
class Result:
    """The rows of a query, with the name and the DuckDB type of every column. `more`: there are rows past the limit."""

    columns: list[str]
    types: list[str]
    rows: list[tuple[Any, ...]]
    more: bool = False


def sql(
    data: Path | str,
    query: str,
    parameters: Sequence[Any] | dict[str, Any] | None = None,
    *,
    limit: int | None = None,
    memory_limit: str | None = None,
    threads: int | None = None,
    read_only: bool = False,
) -> Result:
    """Run one query over the views of a data folder, and fetch all of its rows, or the first `limit`.

    What the query writes is gone with the connection, unless it names a file (`COPY … TO`). With `read_only` it can
    read the views and nothing else: no other file, no network, no extension, no setting, and it can write nothing
    (`storage.log.read_only`). Raises `QueryRefused` where it tries, `ValueError` for a text without a query,
    `DataFolderError`, `TableError` where a file is damaged, and `duckdb.Error` when the query is wrong.
    """
    try:
        query.encode()
    except UnicodeEncodeError:
        raise ValueError("the query is not valid UTF-8") from None
    if not duckdb.extract_statements(query):
        raise ValueError("there is no query in the text")

    def run(con: duckdb.DuckDBPyConnection) -> Result:
        cursor = con.execute(query, parameters)
        description = cursor.description or []
        rows = cursor.fetchall() if limit is None else cursor.fetchmany(limit + 1)
        more = limit is not None and len(rows) > limit
        return Result([c[0] for c in description], [str(c[1]) for c in description], rows[:limit], more)

    if not read_only:

        def run_openly(con: duckdb.DuckDBPyConnection) -> Result:
            con.execute("SET python_enable_replacements = false")  # a table is never a variable of Python's
            return run(con)

        return read(data, run_openly, memory_limit=memory_limit, threads=threads)
    check_is_query(query)
    layout = Layout(data).check()
    files = LogFiles(layout.data)
    with _connect(layout, memory_limit, threads, files) as con:
        try:
            return _interruptible(con, lambda con: _with_snapshot(con, layout, run, files))
        except duckdb.PermissionException as error:
            raise refusal(str(error).splitlines()[0]) from error
        except duckdb.Error as error:
            if files.refused is None:
                raise
            raise refusal(f"the query writes to {files.refused}") from error


def sql_text(value: str) -> str:
    """A SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


def scan(table: str, files: Sequence[Path], name: Callable[[Path], str] | None = None) -> str:
    """SQL that reads files of one table with all the columns of today, those that a file lacks being NULL.

    `name` is how DuckDB is to call a file, by default by its path.

    Files of the same columns are read together. `union_by_name` would do for all of them, but then DuckDB opens every
    file for every query, whatever days that asks for: 0.5 ms each.
    """
    empty = ", ".join(f"NULL::{kind} AS {name}" for name, kind in sql_columns(table))
    # DuckDB would take a `k=v` in the data folder's own path for a partition, too, or for a column of ours.
    depth = len(PARTITIONS[table]) + 2  # the table's folder, those of the partition, the file
    misleads = any("=" in part for path in files for part in path.parts[:-depth])
    alike: dict[tuple[Any, ...], list[Path]] = {}
    for path in files:
        alike.setdefault((path.parent if misleads else None, *_columns_of(path)), []).append(path)
    parts = [f"SELECT {empty} WHERE false"]
    parts += [_read(table, paths, name or literal_path, apart=misleads) for paths in alike.values()]
    return " UNION ALL BY NAME ".join(parts)


def _read(table: str, paths: list[Path], name: Callable[[Path], str], *, apart: bool) -> str:
    """SQL that reads files of the same columns; `apart`: of one partition, which is given as constants."""
    names = ", ".join(sql_text(name(path)) for path in paths)
    kinds = PARTITIONS[table]
    if not apart:
        types = ", ".join(f"{column}: {kind}" for column, kind in kinds.items())
        return f"FROM read_parquet([{names}], hive_partitioning = true, hive_types = {{{types}}})"
    values = dict(part.split("=", 1) for part in paths[0].parts[-1 - len(kinds) : -1])
    constants = ", ".join(f"{sql_text(values[column])}::{kind} AS {column}" for column, kind in kinds.items())
    own = ", ".join(map(sql_text, kinds))  # which others' tools write into the file, too
    return (
        f"SELECT COLUMNS(lambda c: c NOT IN ({own})), {constants} "  # noqa: S608 - paths
        f"FROM read_parquet([{names}], hive_partitioning = false)"
    )


def _columns_of(path: Path) -> tuple[str, ...]:
    try:
        status = path.stat()
        return _read_columns(path, status.st_mtime_ns, status.st_size)
    except (OSError, pa.ArrowException):
        return ()  # gone, or damaged: DuckDB will say so to whoever reads it


@lru_cache(maxsize=100_000)
def _read_columns(path: Path, mtime_ns: int, size: int) -> tuple[str, ...]:
    return tuple(pq.read_schema(path).names)


def literal_path(path: Path) -> str:
    """A path as DuckDB's readers take it: `*?[` would make a pattern, a class of one character stands for itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in str(path))


def _create_views(con: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    """All views, without a file yet: DuckDB opens every file that a view names, once for each time it is named."""
    _show(con, Snapshot((), ()))
    con.register("ledger_costs", cost_stream(layout))
    con.register("ledger_models", model_stream(layout))
    for name, query in (
        ("feedback", _FEEDBACK),
        ("labelled_decisions", _LABELLED_DECISIONS),
        ("costs", "FROM ledger_costs"),
        ("models", "FROM ledger_models"),
    ):
        con.execute(f"CREATE VIEW {name} AS {query}")


def _show(con: duckdb.DuckDBPyConnection, snapshot: Snapshot, files: LogFiles | None = None) -> None:
    if files is not None:
        files.show([*snapshot.decisions, *snapshot.feedback])
    name = None if files is None else files.name
    con.execute(f"CREATE OR REPLACE VIEW decisions AS {scan('decisions', snapshot.decisions, name)}")
    con.execute(f"CREATE OR REPLACE VIEW feedback_log AS {scan('feedback', snapshot.feedback, name)}")


def _show_lake(con: duckdb.DuckDBPyConnection) -> None:
    for view, table in (("decisions", "decisions"), ("feedback_log", "feedback")):
        con.execute(f"CREATE OR REPLACE VIEW {view} AS FROM lake.{table}")


# A decision's feedback is all in the partition of the decision's date; an episode's may be in many.
_FEEDBACK = """
SELECT date, decision_id, NULL::VARCHAR AS episode_id, metric, latest.* FROM (
    SELECT date, decision_id, metric,
           max_by(struct_pack(value, kind, author, ts, feedback_id, extra), (ts, feedback_id)) AS latest
    FROM feedback_log WHERE decision_id IS NOT NULL GROUP BY date, decision_id, kind, metric
)
UNION ALL BY NAME
SELECT latest.date, NULL::UUID AS decision_id, episode_id, metric, latest.* EXCLUDE (date) FROM (
    SELECT episode_id, metric,
           max_by(struct_pack(date, value, kind, author, ts, feedback_id, extra), (ts, feedback_id)) AS latest
    FROM feedback_log WHERE decision_id IS NULL GROUP BY episode_id, kind, metric
)
"""
# What a metric says as a number: true is 1, false is 0, text is nothing.
NUMBER = "CASE value WHEN 'true' THEN 1 WHEN 'false' THEN 0 ELSE TRY_CAST(value AS DOUBLE) END"
# A demonstration that is none replaces no earlier one.
_IS_ANSWER = "CASE WHEN json_valid(value ->> '$') THEN json_type(value ->> '$') END = 'OBJECT'"
RETRACTED = """
SELECT r.id FROM (
    SELECT date, decision_id, author, TRY_CAST(value ->> '$' AS UUID) AS id FROM feedback_log
    WHERE kind = 'comment' AND metric = 'retraction' AND decision_id IS NOT NULL AND json_valid(value)
) AS r JOIN feedback_log AS f ON f.date = r.date AND f.decision_id = r.decision_id AND f.feedback_id = r.id
    AND f.author IS NOT DISTINCT FROM r.author
"""
"""SQL: ids of the demonstrations that their own authors took back (`quality.labelling`)."""
# Of the answers of one side, the first that is a label comes first; then the one that was served.
_BEST = "(NOT coalesce(valid AND decision IS NOT NULL, false), NOT served, decision_id)"
_ANSWER = "struct_pack(decision_id, model, confidence, decision := CASE WHEN valid THEN decision END)"
# Labels of single questions (`demonstration.<question>`) add up, the later one deciding where two say something.
_DEMONSTRATION = """
CASE WHEN bool_or(kind = 'demonstration' AND starts_with(metric, 'demonstration.'))
     THEN list_reduce(
              list((value ->> '$')::JSON ORDER BY given) FILTER (kind = 'demonstration'),
              lambda whole, part: json_merge_patch(whole, part)
          )::VARCHAR
     ELSE max_by(value ->> '$', given) FILTER (kind = 'demonstration')
END
"""
_LABELLED_DECISIONS = f"""
WITH answers AS (
    SELECT date, decision_type, request_id, count(*) AS answers,
           min_by(decision_id, (NOT served, source, decision_id)) FILTER (served) AS served_id,
           min_by({_ANSWER}, {_BEST}) FILTER (source = 'original') AS original,
           min_by({_ANSWER}, {_BEST}) FILTER (source = 'custom') AS custom
    FROM decisions GROUP BY date, decision_type, request_id
),
request_feedback AS (
    SELECT date, decision_type, request_id, kind, metric,
           max_by(struct_pack(value := f.value, author), (f.ts, feedback_id)) AS latest,
           max(struct_pack(ts := f.ts, feedback_id)) AS given
    FROM (
        FROM feedback_log
        WHERE decision_id IS NOT NULL
              AND (kind = 'metric' OR kind = 'demonstration' AND {_IS_ANSWER} AND feedback_id NOT IN ({RETRACTED}))
    ) AS f
    JOIN (SELECT date, decision_type, request_id, decision_id FROM decisions) USING (date, decision_id)
    GROUP BY date, decision_type, request_id, kind, metric
),
said AS (
    SELECT date, decision_type, request_id,
           max_by(author, given) FILTER (kind = 'demonstration') AS demonstrated_by,
           {_DEMONSTRATION} AS demonstration,
           (max(given) FILTER (kind = 'demonstration')).ts AS demonstrated_at,
           map_from_entries(list((metric, {NUMBER})) FILTER (kind = 'metric' AND {NUMBER} IS NOT NULL)) AS feedback
    FROM (SELECT *, latest.value AS value, latest.author AS author FROM request_feedback)
    GROUP BY date, decision_type, request_id
),
episodes AS (
    SELECT episode_id,
           map_from_entries(list((metric, {NUMBER})) FILTER (kind = 'metric' AND {NUMBER} IS NOT NULL)) AS feedback
    FROM feedback WHERE episode_id IS NOT NULL GROUP BY episode_id
)
SELECT d.date, d.decision_type, d.request_id, d.decision_id, d.ts, d.agent_id, d.room_id, d.episode_id, d.subject_ids,
       d.messages, d.tools, d.tags,
       CASE
           WHEN said.demonstration IS NOT NULL THEN said.demonstration
           WHEN original.decision IS NOT NULL THEN original.decision
           ELSE custom.decision
       END AS label,
       CASE
           WHEN said.demonstration IS NOT NULL THEN 'demonstration'
           WHEN original.decision IS NOT NULL THEN 'original'
           WHEN custom.decision IS NOT NULL THEN 'custom'
       END AS label_source,
       said.demonstration, said.demonstrated_by,
       said.demonstrated_at,
       original.decision_id AS original_decision_id, original.decision AS original_decision,
       custom.decision_id AS custom_decision_id, custom.decision AS custom_decision,
       custom.model AS custom_model, custom.confidence AS custom_confidence,
       d.served, d.source, d.model, d.completion, d.decision, d.valid, d.confidence, d.fallback_reason,
       d.config_hash, d.experiment, d.arm, d.arm_probability, d.latency_ms, d.cost_usd, answers.answers,
       coalesce(said.feedback, MAP {{}}) AS feedback, coalesce(episodes.feedback, MAP {{}}) AS episode_feedback
FROM decisions AS d
JOIN answers ON d.date = answers.date AND d.decision_type = answers.decision_type AND d.decision_id
    = coalesce(answers.served_id, original.decision_id, custom.decision_id)
LEFT JOIN said ON d.date = said.date AND d.decision_type = said.decision_type AND d.request_id = said.request_id
LEFT JOIN episodes ON d.episode_id = episodes.episode_id
"""  # noqa: S608 - only the constants above
