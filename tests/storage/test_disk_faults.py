"""Every call to the disk failing once, in every library, over every verb of the log. Long: by `make torture`."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

import storage
from storage.errors import StorageError
from storage.log.land import land_decisions
from tests.storage.disk_faults import MODES, failing_disk
from tests.storage.survival import VERBS, check_survived, fill

needs_preload = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)


@needs_preload
@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("verb", VERBS)
def test_every_call_of_any_library_failing(tmp_path: Path, verb: str, mode: str) -> None:
    template = tmp_path / "template"
    filled = fill(template)
    if verb != "land":
        land_decisions(template)  # every verb lands first; its own calls are what is wanted
    failed: Counter[str] = Counter()
    unnoticed: Counter[str] = Counter()
    with failing_disk(tmp_path) as run, storage.connect(template) as con:
        for number in range(1, 10_000):
            data = tmp_path / str(number)
            shutil.copytree(template, data)
            said = run(data, verb, number, mode)
            try:
                check_survived(con, data, filled, verb)
            except (AssertionError, StorageError) as error:
                raise AssertionError(f"{verb}, call {number}: {mode} of {said['failed']}: {said['error']}") from error
            shutil.rmtree(data)
            if not said["failed"]:
                assert not said["error"]
                break
            failed[said["failed"]] += 1
            unnoticed[said["failed"]] += not said["error"]
    assert failed
    print(f"{verb}, {mode}: {failed.total()} survived, {dict(failed)}; of them harmless {dict(+unnoticed)}", flush=True)
