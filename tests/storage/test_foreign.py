"""What others put into the data folder, and a data folder that is not a plain writable one."""

from __future__ import annotations

import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

import storage
from storage.erasure.erase import erase_subject
from storage.errors import DataFolderError, LandingError, TableError
from storage.log.compact import compact_decisions
from storage.log.expire import expire_decisions
from storage.log.land import land_decisions
from storage.log.reland import reland_quarantine
from tests.disks import small_disk
from tests.storage.logs import NOON, landed_ids, make_days, write_segment

DAY = "decisions/decision_type=should_respond/date=2026-11-20"
FOREIGN = [
    *("spool/readme", "spool/a.seal.bak", "quarantine/notes.txt", "datasets/x", "evaluations/y"),
    *("decisions/notes.txt", "decisions/decision_type=x/date=20261120/part-a.parquet", "feedback/x"),
    *(
        "decisions/decision_type=x.tar",
        "decisions/decision_type=should_respond/date=2026-11-19",
        "feedback/date=2026-11-20",
    ),
    *(f"{DAY}/notes.md", f"{DAY}/.DS_Store", f"{DAY}/mine.parquet", f"{DAY}/folder/x"),
]


def land_two_files(data: Path, **values: object) -> None:
    for _ in range(2):
        write_segment(data, make_days(1, 2, **values))
        land_decisions(data, now=NOON)


def test_files_of_others_are_neither_read_nor_harmed(tmp_path: Path) -> None:
    land_two_files(tmp_path, subject_ids=["bob"])
    land_two_files(tmp_path, subject_ids=["ann"])
    for name in FOREIGN:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not ours")
    before = landed_ids(tmp_path)
    assert land_decisions(tmp_path).segments == reland_quarantine(tmp_path).files == 0
    assert compact_decisions(tmp_path).files_after == 1
    assert landed_ids(tmp_path) == before
    assert erase_subject(tmp_path, "ann").decisions == 4
    assert len(landed_ids(tmp_path)) == 4
    expired = expire_decisions(tmp_path, retention_days=1, now=NOON + timedelta(days=9))
    assert (expired.partitions, landed_ids(tmp_path)) == (1, [])
    assert expire_decisions(tmp_path, retention_days=1, now=NOON + timedelta(days=9)).partitions == 0
    assert {name: (tmp_path / name).read_text() for name in FOREIGN} == dict.fromkeys(FOREIGN, "not ours")


def test_links_and_folders_are_no_segments(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("not ours")
    data = tmp_path / "data"
    write_segment(data, make_days(1, 2))
    for suffix in ("seal", "open"):
        (data / f"spool/link.{suffix}").symlink_to(elsewhere)
        (data / f"spool/dangling.{suffix}").symlink_to(tmp_path / "nowhere")
        (data / f"spool/folder.{suffix}").mkdir()
    report = land_decisions(data)
    assert (report.segments, report.decisions, report.quarantined) == (1, 2, {})
    erase_subject(data, "nobody")
    assert len(list((data / "spool").iterdir())) == 6
    assert elsewhere.read_text() == "not ours"


def test_a_data_folder_or_type_may_be_a_link_and_a_day_may_not(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    data = tmp_path / "data"
    data.symlink_to(tmp_path / "real")
    land_two_files(data)
    of_type = (data / DAY).parent
    of_type.rename(tmp_path / "type")
    of_type.symlink_to(tmp_path / "type")
    assert compact_decisions(data).files_after == 1
    (data / DAY).rename(tmp_path / "day")
    (data / DAY).symlink_to(tmp_path / "day")
    land_two_files(data)
    with pytest.raises(TableError, match="is a symbolic link"):
        compact_decisions(data)
    with pytest.raises(TableError, match="is a symbolic link"):
        expire_decisions(data, retention_days=1, now=NOON + timedelta(days=9))
    assert len(landed_ids(data)) == 8


def test_a_table_on_another_file_system_is_refused_with_the_mend(tmp_path: Path) -> None:
    data = tmp_path / "data"
    land_two_files(data)
    (data / "decisions").rename(tmp_path / "decisions")
    mend = rf"must be on the file system of {data}, .*: move the data folder as a whole"
    with small_disk(tmp_path, 8) as disk:
        (data / "decisions").symlink_to(shutil.copytree(tmp_path / "decisions", disk / "decisions"))
        write_segment(data, make_days(1, 2))
        with pytest.raises(LandingError, match=rf"nothing is lost; the tables {mend}"):
            land_decisions(data)
        (segment,) = (data / "spool").iterdir()
        segment.rename(tmp_path / segment.name)
        with pytest.raises(TableError, match=f"cannot be replaced: the tables {mend}"):
            compact_decisions(data)
        with pytest.raises(TableError, match=f"cannot be replaced: the tables {mend}"):
            expire_decisions(data, retention_days=1, now=NOON + timedelta(days=9))
        assert len(landed_ids(data)) == 4
    (data / "decisions").unlink()
    (tmp_path / "decisions").rename(data / "decisions")
    (tmp_path / segment.name).rename(segment)
    assert land_decisions(data).decisions == 2
    assert len(landed_ids(data)) == 6


def test_a_read_only_folder_is_read_and_not_landed(tmp_path: Path) -> None:
    with small_disk(tmp_path, 8) as disk:
        write_segment(disk / "data", make_days(1, 2))
        land_decisions(disk / "data")
        write_segment(disk / "data", make_days(1, 2))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(DataFolderError, match=r"cannot be locked for landing \(.lock: Read-only file system\)"):
            land_decisions(disk / "data")
        assert storage.sql(disk / "data", "SELECT count(*) FROM decisions").rows == [(2,)]
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert land_decisions(disk / "data").decisions == 2
