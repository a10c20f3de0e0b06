"""A dataset: what a model is taught, tuned and tested on, with a manifest that accounts for every row.

The same log and the same arguments give the same bytes, in whatever order rows landed and however files were compacted.
A dataset is published as a whole: its folder, named by the hash of its manifest, appears with one rename.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

import storage
from quality.checks.gate import Check, Profile, judge_profiles
from quality.dataset import funnel, selection
from quality.dataset.filters import Cap, describe_filters, filter_condition, read_caps
from quality.dataset.label_policy import LabelPolicy, load_label_policy
from quality.dataset.manifest import Manifest, SplitSummary, hash_file, read_manifest
from quality.dataset.preparation import Rules, check_lines
from quality.dataset.readiness import LIMITED_BELOW, DataVerdict, judge_data
from quality.dataset.splits import SPLITS
from quality.dataset.workers import Run, processes
from quality.errors import DatasetRejected, InsufficientData
from quality.labelling.agreement import measure_agreement
from quality.period import first_moment, moment_after
from quality.settings import ExportSettings
from reasoning.config import Redaction
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.questions import canonical_questions
from reasoning.redaction.redact import REDACTION_VERSION
from storage.errors import DatasetError
from storage.files import make_tree_private, scratch_folder, sync, write_atomic
from storage.layout import Layout
from storage.locks import check_held, data_lock
from storage.log.views import literal_path, sql_text
from storage.progress import OnProgress, Progress

if TYPE_CHECKING:
    from reasoning.config import Config

# Part of every configuration hash: change it when the same rows would give other bytes.
EXPORT_VERSION = 3


def export_dataset(
    data: Path | str,
    decision_type: str,
    settings: ExportSettings | None = None,
    *,
    now: datetime | None = None,
    config: Config | None = None,
    policy: LabelPolicy | None = None,
    progress: OnProgress | None = None,
) -> Manifest:
    """Select, label, redact, deduplicate, split, validate and write the labelled decisions of one type.

    `since` and `until` of the settings are inclusive; a date means the whole day in UTC. Filters come first; then the
    latest four times `limit` rows are looked at. `max_characters` is by default that of the answer form (24,000; for
    code and turns 131,072), `region` that of `config`, as at serving. `policy` is by default that of reasoning.toml.

    Returns the manifest of the dataset; an equal one that is already there is left as it is. Raises `InsufficientData`,
    `DatasetRejected`, `FilterError`, `UnknownDecisionType`, `DataFolderError`. Nothing is left behind on an error.
    """
    kind = get_decision_type(decision_type, config)
    settings = _complete(settings or ExportSettings(), kind, config)
    policy = policy or load_label_policy(kind.name)
    wanted = filter_condition(settings)
    caps = read_caps(settings.max_per)
    start, before = first_moment(settings.since), moment_after(settings.until)
    if start and before and start >= before:
        raise ValueError(f"since {settings.since} is after until {settings.until}: nothing lies between")
    now = now or datetime.now(UTC)
    report = progress or (lambda _: None)
    layout = Layout(data).check()
    home = layout.datasets / decision_type
    with scratch_folder(home, ".export-") as work:
        report(Progress(0, 1, what="select"))
        expired = None if settings.retention_days is None else now - timedelta(days=settings.retention_days)
        con, sources = selection.select_rows(
            data,
            work,
            decision_type,
            selection.Window(start, before, now, expired),
            _choose(settings, policy, wanted),
        )
        report(Progress(1, 1, what="select"))
        try:
            folder = work / "dataset"
            folder.mkdir()
            agreement = _agreement(layout.data, kind)
            export = _Export(kind, settings, policy, caps, sources, work, folder, now, report, agreement)
            with processes(selection.count_chosen(con) >= funnel.WORKERS_FROM) as run:
                manifest, verdict = _build(con, export, run)
            content = _dump(manifest.as_dict())
            dataset_id = hashlib.sha256(content).hexdigest()[:16]
            write_atomic(folder / "manifest.json", content)
        finally:
            con.close()
        _publish(layout, decision_type, folder, home / dataset_id)
    return replace(manifest, dataset_id=dataset_id, path=home / dataset_id, verdict=verdict)


def _choose(settings: ExportSettings, policy: LabelPolicy, wanted: str) -> selection.Choice:
    sources = None if settings.label_sources is None else [str(each) for each in settings.label_sources]
    return selection.Choice(
        policy=policy, label_sources=sources, enough=LIMITED_BELOW, limit=settings.limit, wanted=wanted
    )


def _complete(settings: ExportSettings, kind: DecisionType, config: Config | None) -> ExportSettings:
    """The settings, with what they leave to the type and the configuration. Raises ValueError."""
    if settings.limit < 1:
        raise ValueError(f"limit: at least 1 row is needed, not {settings.limit}")
    if settings.max_class_share is not None and not 0 < settings.max_class_share < 1:
        raise ValueError(f"max_class_share: {settings.max_class_share} is not between 0 and 1")
    return replace(
        settings,
        max_characters=settings.max_characters or kind.form.max_characters,
        region=settings.region or (config.redaction.region if config else Redaction().region),
    )


@dataclass(frozen=True, slots=True)
class _Export:
    """What one export is of, and where it works."""

    kind: DecisionType
    settings: ExportSettings
    policy: LabelPolicy
    caps: list[Cap]
    sources: list[str]
    work: Path
    folder: Path
    now: datetime
    report: OnProgress
    agreement: dict[str, Any]


def _agreement(data: Path, kind: DecisionType) -> dict[str, Any]:
    """How far several labellers agree, for the quality report; without what they said. Empty where only one labels."""
    found = measure_agreement(data, kind)
    if not found.shared:
        return {}
    pairs = [asdict(pair) for pair in found.pairs]
    return {
        "label_agreement": {
            "shared": found.shared,
            "disagreed": found.disagreed,
            "kappa": found.kappa,
            "pairs": [{name: pair[name] for name in ("shared", "agreed", "kappa")} for pair in pairs],
            "conflicts": [str(conflict.request_id) for conflict in found.conflicts],
        }
    }


def _build(con: duckdb.DuckDBPyConnection, export: _Export, run: Run) -> tuple[Manifest, DataVerdict]:
    """Write the files of a dataset from the selected rows, all but its manifest, which is returned."""
    kind, settings, folder, report = export.kind, export.settings, export.folder, export.report
    assert settings.max_characters is not None and settings.region is not None  # `_complete`
    rules = Rules(kind, settings.max_characters, settings.region)
    preparation = funnel.prepare_rows(con, export.work, rules, run, progress=report)
    answers = {"labelled": funnel.count_answers(con)}
    funnel.drop_duplicates(con, export.policy.conflicts)
    texts = funnel.hash_texts(con, export.work, run, progress=report)
    funnel.drop_near_duplicates(con, texts, limit=settings.limit, by_answer=bool(kind.labels), progress=report)
    answers["distinct"] = funnel.count_answers(con)
    validation_from, holdout_from = funnel.assign_splits(
        con, validation_share=settings.validation_share, holdout_share=settings.holdout_share
    )
    funnel.drop_leaks(con, texts, progress=report)
    if settings.max_class_share is not None:
        funnel.balance_training(con, max_class_share=settings.max_class_share, seed=settings.seed)
    for cap in export.caps:
        funnel.cap_training(con, cap, seed=settings.seed)
    verdict = _require_enough(con, export.now)
    answers["kept"] = funnel.count_answers(con)
    leaks = funnel.find_leaks(con, texts)
    hashes = _write_splits(con, export.work, folder)
    rows_sha256 = _write_rows(con, export.work, folder / "rows.parquet")
    report(Progress(0, 1, what="judge"))
    profile = _profile_splits(con, folder, leaks, rules.region, run)
    quality = judge_profiles([Profile("splits", profile, ["split"], _SPLITS_EXPECTED)], docs=folder / "quality")
    report(Progress(1, 1, what="judge"))
    if not quality.success:
        raise DatasetRejected([failure for failure in quality.failures if failure.severity == "critical"])
    query = _describe(settings, kind, export.sources, export.policy)
    manifest = Manifest(
        decision_type=kind.name,
        query=query,
        config_hash=hashlib.sha256(_dump(query)).hexdigest(),
        selected=funnel.count_questions(con),
        dropped=funnel.count_reasons(con),
        faults=preparation.faults,
        redactions=preparation.redactions,
        label_sources=_count_label_sources(con),
        answers=answers if kind.labels else {},
        splits={split: _summarize(con, split, hashes[split]) for split in SPLITS},
        validation_from=_rfc3339(validation_from) or "",
        holdout_from=_rfc3339(holdout_from) or "",
        leaks=leaks,
        rows_sha256=rows_sha256,
        quality=quality.as_dict() | export.agreement,
    )
    return manifest, verdict


def _count_label_sources(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    query = "SELECT label_source, count(*) FROM rows WHERE split IS NOT NULL GROUP BY 1 ORDER BY 1"
    return dict(con.execute(query).fetchall())


def _describe(
    settings: ExportSettings, kind: DecisionType, label_sources: list[str], policy: LabelPolicy
) -> dict[str, Any]:
    """All that decides a dataset's bytes, for its manifest and its configuration hash."""
    return {
        "version": EXPORT_VERSION,
        "redaction": REDACTION_VERSION,
        "since": _rfc3339(first_moment(settings.since)),
        "before": _rfc3339(moment_after(settings.until)),
        "limit": settings.limit,
        "seed": settings.seed,
        "validation_share": settings.validation_share,
        "holdout_share": settings.holdout_share,
        "retention_days": settings.retention_days,
        "label_sources": label_sources,
        "label_policy": policy.as_dict(),
        "max_class_share": settings.max_class_share,
        "max_characters": settings.max_characters,
        "region": settings.region,
        **describe_filters(settings),
        "type": _describe_type(kind),
    }


def _describe_type(kind: DecisionType) -> dict[str, Any]:
    """A type as JSON reads it back. One without typed questions is described as before there were any."""
    described = asdict(kind) | {"labels": list(kind.labels), "stop": list(kind.stop)}
    if kind.questions:
        return described | {"questions": orjson.loads(canonical_questions(kind.questions))}
    del described["questions"]
    return described


def _rfc3339(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _require_enough(con: duckdb.DuckDBPyConnection, now: datetime) -> DataVerdict:
    ((rows, episodes, first, last),) = con.execute(
        "SELECT count(*), count(DISTINCT episode), min(ts), max(ts) FROM rows WHERE dropped IS NULL"
    ).fetchall()
    classes = dict(
        con.execute("SELECT answer, count(*) FROM rows WHERE dropped IS NULL GROUP BY 1 ORDER BY 1").fetchall()
    )
    verdict = judge_data(rows=rows, episodes=episodes, classes=classes, first=first, last=last, now=now)
    filled = con.execute("SELECT count(DISTINCT split) FROM rows WHERE dropped IS NULL").fetchall()[0][0]
    taught = [
        answer
        for (answer,) in con.execute(
            "SELECT DISTINCT answer FROM rows WHERE dropped IS NULL AND split = 'train' ORDER BY 1 LIMIT 2"
        ).fetchall()
    ]
    advice = None
    if verdict.level == "Insufficient":
        advice = verdict.advice
    elif filled < len(SPLITS):
        advice = [f"They come from {episodes} episodes, too few to test on other ones than were learned from."]
    elif len(taught) < 2:
        advice = [f"Every training row has the answer {taught[0]!r}: there is nothing to learn."]
    if advice is not None:
        raise InsufficientData(DataVerdict("Insufficient", rows, episodes, list(advice)), funnel.count_reasons(con))
    return verdict


def _write_splits(con: duckdb.DuckDBPyConnection, work: Path, folder: Path) -> dict[str, str]:
    """Write the lines of each split, which are in the order of the parts. Returns the hash of each file."""
    kept = con.execute(
        "SELECT n, list_position($splits, split) - 1 AS split FROM rows WHERE split IS NOT NULL ORDER BY n",
        {"splits": list(SPLITS)},
    ).fetchnumpy()
    digests = [hashlib.sha256() for _ in SPLITS]
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{split}.jsonl").open("wb")) for split in SPLITS]
        for part in sorted(work.glob("prepared-*")):
            table = pq.read_table(part, columns=["n", "line", "train_line"])
            numbers = table["n"].to_numpy()
            first, last = np.searchsorted(kept["n"], [numbers[0], numbers[-1] + 1])
            own, side = kept["n"][first:last], kept["split"][first:last]
            at_own = np.searchsorted(numbers, own)
            lines, taught = (table[name].take(at_own).to_pylist() for name in ("line", "train_line"))
            for number in np.unique(side):
                chosen = np.flatnonzero(side == number)
                trains = SPLITS[number] == "train"
                block = b"".join(((trains and taught[at]) or lines[at]).encode() + b"\n" for at in chosen)
                digests[number].update(block)
                files[number].write(block)
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    return {split: digest.hexdigest() for split, digest in zip(SPLITS, digests, strict=True)}


def _write_rows(con: duckdb.DuckDBPyConnection, work: Path, path: Path) -> str:
    parts = sql_text(str(work / "prepared-*.parquet"))
    reader = con.sql(f"""
        SELECT split, (row_number() OVER (PARTITION BY split ORDER BY n) - 1)::BIGINT AS line,
               decision_id::VARCHAR AS decision_id, request_id::VARCHAR AS request_id, episode_id, ts, subject_ids,
               label_source, original, original_latency_ms, original_cost_usd
        FROM rows JOIN (SELECT n, original FROM read_parquet({parts})) USING (n) WHERE split IS NOT NULL
        ORDER BY list_position(['train', 'validation', 'holdout'], split), line
    """).to_arrow_reader(10_000)  # noqa: S608 - a path of ours
    schema = reader.schema.set(reader.schema.get_field_index("ts"), pa.field("ts", pa.timestamp("us", tz="UTC")))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema), row_group_size=10_000)
    sync(path)
    return hash_file(path)


_SPLITS_EXPECTED = [
    Check("rows", "every split has rows", "critical", min_value=1),
    Check("missing_rows", "every line of a file has its row in rows.parquet", "critical", min_value=0, max_value=0),
    Check("faulty_lines", "every line keeps to the fine-tuning format", "critical", max_value=0),
    Check("unredacted_lines", "no line has personal data or a secret left", "critical", max_value=0),
    Check("repeated_decisions", "no decision stands twice", "critical", max_value=0),
    Check("out_of_order", "every split lies after the one before it", "critical", max_value=0),
    Check("answers", "a split has more than one answer", "warning", min_value=2),
    Check("rows", "a split has 20 rows or more, or its figures mean little", "warning", min_value=20),
    Check("episodes", "a split has 10 episodes or more, or its intervals mean little", "warning", min_value=10),
    Check("largest_answer_share", "no answer makes up more than 95 % of a split", "warning", max_value=0.95),
    Check("shared_episodes", "no episode is in two splits", "critical", max_value=0),
    Check("shared_prompts", "no prompt is in two splits", "critical", max_value=0),
    Check("near_duplicates", "no prompt has a near duplicate in an earlier split", "critical", max_value=0),
    Check("contained", "no prompt contains most of one in an earlier split, or the reverse", "critical", max_value=0),
]


_CHECKED_BYTES = 8 << 20

_SIDE = """
SELECT count(*), count(DISTINCT decision_id), count(DISTINCT coalesce(episode_id, decision_id)), min(ts), max(ts)
FROM read_parquet({path}) WHERE split = ?
"""


def _profile_splits(con: duckdb.DuckDBPyConnection, folder: Path, leaks: funnel.Leaks, region: str, run: Run) -> Any:
    """One row per split, counted from the files as they were written, with what all splits have in common."""
    import pandas as pd

    profile = []
    last_before = None
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        starts = range(0, path.stat().st_size, _CHECKED_BYTES)
        checked = list(run(check_lines, [(path, start, start + _CHECKED_BYTES, region) for start in starts]))
        lines, faulty, unredacted = (sum(each[at] for each in checked) for at in range(3))
        side = _SIDE.format(path=sql_text(str(folder / "rows.parquet")))
        ((rows, decisions, episodes, first, last),) = con.execute(side, [split]).fetchall()
        answers = [
            count
            for (count,) in con.execute("SELECT count(*) FROM rows WHERE split = ? GROUP BY answer", [split]).fetchall()
        ]
        profile.append(
            {
                "split": split,
                "rows": lines,
                "missing_rows": abs(lines - rows),
                "faulty_lines": faulty,
                "unredacted_lines": unredacted,
                "repeated_decisions": rows - decisions,
                "out_of_order": int(first is not None and last_before is not None and first <= last_before),
                "answers": len(answers),
                "episodes": episodes,
                "largest_answer_share": max(answers, default=0) / max(sum(answers), 1),
                **asdict(leaks),
            }
        )
        last_before = last or last_before
    return pd.DataFrame(profile)


def _summarize(con: duckdb.DuckDBPyConnection, split: str, sha256: str) -> SplitSummary:
    ((rows, episodes, first, last),) = con.execute(
        "SELECT count(*), count(DISTINCT episode), min(ts), max(ts) FROM rows WHERE split = ?", [split]
    ).fetchall()
    # Answers of a plan or a program are as many as the rows: the manifest names the most frequent ones.
    answers = con.execute(
        "SELECT answer, count(*) FROM rows WHERE split = ? GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20", [split]
    ).fetchall()
    return SplitSummary(
        rows, episodes, _rfc3339(first), _rfc3339(last), {answer[:200]: count for answer, count in answers}, sha256
    )


def _publish(layout: Layout, decision_type: str, folder: Path, target: Path) -> None:
    """Rename the finished folder to its place, unless rows of it were erased from the log meanwhile."""
    ids = sql_text(literal_path(folder / "rows.parquet"))

    def count_gone(log: duckdb.DuckDBPyConnection) -> int:
        ((gone,),) = log.execute(
            f"""
            SELECT count(*) FROM (SELECT decision_id::UUID AS decision_id FROM read_parquet({ids})) ANTI JOIN
                (SELECT decision_id FROM decisions WHERE decision_type = ?) USING (decision_id)
            """,  # noqa: S608 - a path of ours
            [decision_type],
        ).fetchall()
        return int(gone)

    make_tree_private(folder)
    with data_lock(layout, "publishing a dataset"):
        if gone := storage.read(layout.data, count_gone, memory_limit=selection.MEMORY_LIMIT):
            raise DatasetError(f"{gone} of the rows were erased from the log during the export. Export again")
        for path in (*folder.rglob("*"), folder):
            sync(path)
        check_held(layout)
        try:
            folder.rename(target)
        except OSError:
            # It is there already: the same id means the same content.
            read_manifest(target)
            return
        sync(target.parent)


def _dump(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
