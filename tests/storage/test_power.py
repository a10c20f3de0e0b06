"""The power going out at any moment of any verb of the log, and of a writer."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import storage
from reasoning.io.spool import SegmentWriter
from storage.errors import StorageError
from storage.layout import Layout
from storage.log import replace
from storage.log.land import land_decisions
from tests.storage.logs import make_days
from tests.storage.power import record, write_state
from tests.storage.survival import VERBS, check_survived, fill, read_all

needs_preload = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)


def main(data: Path, verb: str, mark: Callable[[str], None]) -> None:
    """What happens to `data` while it is written down."""
    if verb != "write":
        verb, _, without = verb.partition(" without ")
        with pytest.MonkeyPatch.context() as patch:
            if without:
                patch.setattr(replace, "exchange", _cannot_exchange)
            VERBS[verb](data)
        return
    writer = SegmentWriter(data / "spool", sync_interval=3600)
    for number, decision in enumerate(make_days(1, 4), 1):
        assert writer.write(decision)
        if number == 2:
            writer.seal()
        else:
            writer._sync()  # as its thread does every second
        mark(str(number))
    writer.close()


def _cannot_exchange(*_: Path) -> None:
    raise OSError(errno.ENOSYS, "no exchange of folders here")


@needs_preload
def test_what_a_writer_synced_is_there_after_a_cut(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    journal = record(tmp_path, data, __name__, "write")
    wanted = [decision.ts for decision in make_days(1, 4)]
    with storage.connect(data) as con:
        for line, folder, contents in journal.states():
            cut = tmp_path / "cut"
            write_state(cut, folder, contents)
            Layout(cut).create()
            land_decisions(cut)
            storage.refresh(con, cut)
            found = [row[0] for row in con.execute("SELECT ts FROM decisions ORDER BY ts").fetchall()]
            synced = sum(at < line for at in journal.marks.values())
            assert found == wanted[: len(found)]
            assert len(found) >= synced, f"a cut after line {line} of {tmp_path / 'journal'}"
            shutil.rmtree(cut)


@needs_preload
@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("run", [*VERBS, "compact without exchange"])
def test_a_cut_at_any_moment(tmp_path: Path, run: str) -> None:
    template = tmp_path / "template"
    filled = fill(template)
    if run != "land":
        land_decisions(template)
    ran = tmp_path / "ran"
    shutil.copytree(template, ran)
    journal = record(tmp_path, ran, __name__, run)
    verb = run.partition(" ")[0]
    with storage.connect(template) as con:
        count = 0
        for line, folder, contents in journal.states():
            data = tmp_path / "cut"
            write_state(data, folder, contents)
            try:
                if line == journal.lines:  # the verb has returned: what it said it did stays done
                    storage.refresh(con, data)
                    assert set(read_all(con)[0]) == filled.after(verb)
                check_survived(con, data, filled, verb)
            except (AssertionError, StorageError) as error:
                raise AssertionError(f"{run}: a cut after line {line} of {tmp_path / 'journal'}") from error
            shutil.rmtree(data)
            count += 1
    print(f"{run}: {journal.lines} calls, {count} states survived", flush=True)
