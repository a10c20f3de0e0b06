"""What is done to the rows of one part of an export: label, redact and check them, hash their texts, check their lines.

A part is a few thousand rows in a Parquet file. The functions here read a part and write another, so that they can run
in processes of their own (`quality.dataset.workers`) and memory does not grow with the number of rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from quality.dataset.duplicates import MIN_SHINGLES, THRESHOLD, strip_template
from quality.dataset.fingerprints import batches, choose_char_grams, prefixes, word_grams
from quality.dataset.labels import format_completion
from reasoning.decision_types import DecisionType
from reasoning.errors import UnparseableAnswer, Unredactable
from reasoning.records import Message
from reasoning.redaction.prompts import redact_answer, redact_prompt
from reasoning.redaction.redact import redact
from storage.training_rows import MAX_CHARACTERS, find_line_fault, find_row_fault, row_length

_PREPARED = pa.schema(
    [
        ("n", pa.int64()),
        ("group", pa.uint64()),
        ("dropped", pa.string()),
        ("line", pa.string()),
        ("train_line", pa.string()),
        ("prompt", pa.string()),
        ("prompt_hash", pa.string()),
        ("answer", pa.string()),
        ("original", pa.string()),
    ]
)
_GRAMS = pa.schema([("n", pa.int64()), ("group", pa.uint64()), ("gram", pa.uint64())])


@dataclass(frozen=True, slots=True)
class Rules:
    """What a row is held to: its type, how long it may be, and how its phone numbers are read."""

    kind: DecisionType
    max_characters: int
    region: str


def prepare_part(source: Path, row_group: int, target: Path, rules: Rules) -> tuple[int, Counter[str], Counter[str]]:
    """Prepare the rows of one row group of `source`; write them to `target`.

    `source` has the columns n, group (of the episode), messages (JSON), label, original, has_tools. Returns the number
    of rows, and counts of what was redacted, by kind, and of why rows were invalid.
    """
    rows = pq.ParquetFile(source).read_row_group(row_group).to_pylist()
    redactions: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    prepared = []
    for row in rows:
        messages = orjson.loads(row["messages"])
        if row["has_tools"] and not any("<tools>" in message["content"] for message in messages[:1]):
            made: dict[str, Any] = {"dropped": "tools"}
        else:
            made = prepare_row(rules, messages, row["label"], row["original"], redactions, faults)
        prepared.append({"n": row["n"], "group": row["group"], **made})
    _write(pa.Table.from_pylist(prepared, schema=_PREPARED), target)
    return len(rows), redactions, faults


def prepare_row(
    rules: Rules,
    messages: list[dict[str, str]],
    label: str,
    original: str | None,
    redactions: Counter[str],
    faults: Counter[str],
) -> dict[str, Any]:
    """The columns of a row that is fit, or the one column `dropped` with the reason. Adds to the two counts."""
    kind, region = rules.kind, rules.region
    try:
        raw = format_completion(kind, label)
        kind.parse_reply(raw, messages)
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
        decision = kind.parse_reply(answer, prompt)
        redacted.restore_decision(decision)
    except UnparseableAnswer as error:
        # It was an answer before, so what was found in it is a part of its form; or it acts on what the prompt lacks.
        faults[f"redacted label: {error}"] += 1
        return {"dropped": "unredactable"}
    row: dict[str, Any] = {"messages": [*prompt, {"role": "assistant", "content": answer}]}
    if fault := find_row_fault(row, max_characters=None):  # a row that is too long has a reason of its own
        faults[fault] += 1
        return {"dropped": "invalid"}
    if row_length(row) > min(rules.max_characters, MAX_CHARACTERS):
        return {"dropped": "too_long"}
    redactions.update(redacted.counts)
    redactions.update(found)
    return {
        "line": orjson.dumps(row).decode(),
        "train_line": _shuffled_line(rules, messages, answer, prompt),
        "prompt": "\n".join(message["content"] for message in prompt),
        "prompt_hash": hashlib.sha256(orjson.dumps(prompt)).hexdigest(),
        "answer": kind.form.answer_class(decision),
        "original": original,
    }


def _shuffled_line(rules: Rules, messages: list[dict[str, str]], answer: str, prompt: list[Message]) -> str | None:
    """The line for training, where a prompt has options: they stand in a random order, which is always the same for
    the same prompt, so that a model learns what they say and not where they stand. None where they have no order."""
    asked: list[Message] = [{"role": message["role"], "content": message["content"]} for message in messages]
    seed = hashlib.sha256(orjson.dumps(prompt)).hexdigest()
    shuffled = rules.kind.form.reorder(rules.kind, asked, seed)
    if shuffled == asked or prompt[0] != asked[0]:  # an option that is redacted keeps the placeholder of its place
        return None
    shown = redact_prompt(shuffled, region=rules.region).messages
    return orjson.dumps({"messages": [*shown, {"role": "assistant", "content": answer}]}).decode()


def hash_part(
    source: Path, numbers: NDArray[np.int64], words: Path, characters: Path, template: frozenset[str], levels: Path
) -> int:
    """Hash the prompts of the rows `numbers` of a prepared part, without the template's lines.

    Writes (n, group, gram) twice: the rarest word grams of each (`fingerprints.prefixes`) to `words`, chosen character
    grams to `characters`. `levels` is the file of `fingerprints.count_levels`. Returns the number of rows that are long
    enough to be compared.
    """
    part = pq.read_table(source, columns=["n", "group", "prompt"])
    part = part.filter(np.isin(part["n"].to_numpy(), numbers))
    texts = [strip_template(prompt, template) for prompt in part["prompt"].to_pylist()]
    number, group = part["n"].to_numpy(), part["group"].to_numpy()
    frequent = _read_levels(levels)
    compared = 0
    found: dict[Path, list[pa.Table]] = {words: [], characters: []}
    for batch in batches(texts):
        rare = prefixes(*word_grams(texts[batch], frequent), THRESHOLD, MIN_SHINGLES)
        compared += int(np.count_nonzero(np.diff(rare[0], prepend=-1)))
        for target, (owner, grams) in ((words, rare), (characters, choose_char_grams(texts[batch]))):
            columns = [number[batch][owner], group[batch][owner], grams]
            found[target].append(pa.table(columns, schema=_GRAMS))
    for target, tables in found.items():
        _write(pa.concat_tables([*tables, _GRAMS.empty_table()]), target)
    return compared


def check_lines(path: Path, start: int, end: int, region: str) -> tuple[int, int, int]:
    """How many lines begin in the bytes from `start` to `end`; of these, faulty ones and ones with something private.

    What is read is the finished file, so that a fault of what wrote it is seen.
    """
    lines = faulty = unredacted = 0
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # the rest of a line of the range before
        while file.tell() < end and (line := file.readline()):
            lines += 1
            faulty += find_line_fault(line, is_first=not start and lines == 1) is not None
            row = orjson.loads(line)
            unredacted += any(_has_private(message["content"], region) for message in row["messages"])
    return lines, faulty, unredacted


@lru_cache(maxsize=256)  # the first message is the same in nearly all rows
def _has_private(text: str, region: str) -> bool:
    return bool(redact(text, region=region)[1])


@lru_cache(maxsize=1)
def _read_levels(path: Path) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = np.load(path)
    return levels


def _write(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="lz4", use_dictionary=False)
