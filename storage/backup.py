"""Back up a data folder while everything runs, verify backups, and restore them.

A backup is a folder `<target>/<time>/` that holds the files as they were at one moment, and `manifest.json` with the
size and SHA-256 of each. Files of the log never change once written, so the data folder's lock is held only while each
file gets a second name (hard link); copying happens afterwards. Databases are copied by SQLite's online backup. Files
that the previous backup of the target already has are linked, not copied. The folder gets its name when all of it is
on disk, so a backup that was killed leaves none.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from reasoning.config import settings_file
from storage.errors import BackupError
from storage.files import make_folder, open_private, remove_tree, scratch_folder, sync, write_atomic
from storage.layout import Layout
from storage.locks import LOCK_TIMEOUT, check_held, data_lock
from storage.log.home import check_folder
from storage.log.land import list_segments
from storage.log.schema import PARTITIONS
from storage.log.table import list_files
from storage.progress import OnProgress, Progress

MANIFEST = "manifest.json"
_VERSION = 1
_PARTIAL = ".partial-"
_STAGED = ".backup-"
# Besides the tables and the spool. Tokens, passwords, logs, Prefect's home and locks stay out (docs/guides/storage.md).
_FOLDERS = ("quarantine", "datasets", "evaluations", "erasures", "emulator")
_FILES = ("routes.json", "routes.paused.json", "installation.ids", "gateway.secret")
_DATABASES = ("gateway.sqlite", "emulator/emulator.sqlite")
_LEDGER = "ledger.sqlite"
_NOT_COPIED = (".tmp", ".lock", "-wal", "-shm", "-journal")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EINVAL)
_CHUNK = 1 << 20
_WARNINGS = (
    "people who were erased since {taken_at} are in it again: erase them again (`reasoning erase`) before anything "
    "reads it; what has expired since then expires again",
    "what was spent and deployed since {taken_at} is not in its ledger: run `reasoning reconcile` before anything "
    "that costs money, and do not use this folder beside the one that was backed up: they are one installation",
)


@dataclass
class BackupReport:
    """What one backup holds. `reused` files are shared with an earlier backup and take no extra space.

    `left_out` names the parts of the data folder that are not backed up.
    """

    path: str
    files: int = 0
    bytes: int = 0
    reused: int = 0
    ledger: str = "included"
    left_out: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


@dataclass
class VerifyReport:
    """Problems found in the backups of a folder, one line each."""

    backups: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class RestoreReport:
    """What was restored: the state at `taken_at`. `warnings` name data that came back, or did not."""

    backup: str
    data: str
    taken_at: str
    files: int = 0
    bytes: int = 0
    ledger: str = "included"
    warnings: list[str] = field(default_factory=list)


def back_up(
    data: Path | str,
    target: Path | str,
    *,
    keep: int | None = None,
    now: datetime | None = None,
    progress: OnProgress | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
) -> BackupReport:
    """Write a backup of `data` into the folder `target`; with `keep`, only so many of the latest stay there.

    Agents go on writing, other verbs wait for the moment. All that was acknowledged before the call is in it. Raises
    `DataFolderError`, `DataFolderBusy`, `BackupError`, and OSError where the target cannot be written.
    """
    layout, home = Layout(data).check().create(), Path(target).absolute()
    check_folder(layout, "backup")
    if keep is not None and keep < 1:
        raise ValueError(f"keep must be 1 or more, not {keep}")
    real, root = home.resolve(), layout.data.resolve()
    if real == root or root in real.parents or real in root.parents:
        raise BackupError(f"the target {home} and the data folder {layout.data} are inside each other: choose another")
    if home.exists() and (home / MANIFEST).exists():
        raise BackupError(f"{home} is one backup: give the folder that it is in, {home.parent}")
    make_folder(home)
    previous = _list_backups(home)
    with scratch_folder(home, _PARTIAL) as partial, scratch_folder(layout.data, _STAGED) as staged:
        copy = _Copy(partial, previous[-1:], progress)
        report = BackupReport("", left_out=_left_out(layout))
        with data_lock(layout, "backup", timeout=lock_timeout):
            report.ledger, databases = _copy_databases(layout, staged)
            linked = _link_all(layout, staged)
            if linked is None:  # no hard links here: other verbs wait until everything is copied
                copy.run(_find_files(layout))
            check_held(layout)  # otherwise a verb of another host may have moved files meanwhile
        copy.run(databases | (linked or {}) | _find_settings())
        content = _dump_manifest(copy.entries, report, now or datetime.now(UTC))
        write_atomic(partial / MANIFEST, content)
        for folder in sorted({path.parent for path in partial.rglob("*")} | {partial}, reverse=True):
            sync(folder)
        final = _rename(partial, home, now or datetime.now(UTC), previous)
    report.path = str(final)
    report.files, report.reused = len(copy.entries), copy.reused
    report.bytes = sum(entry["size"] for entry in copy.entries.values())
    for old in [*previous, final][: -keep if keep else 0]:
        _remove_backup(old)
        report.removed.append(old.name)
    return report


def verify_backup(source: Path | str, *, progress: OnProgress | None = None) -> VerifyReport:
    """Compare every file of a backup, or of all backups in a folder, with its manifest.

    Raises `BackupError` where there is no finished backup.
    """
    report = VerifyReport()
    known: dict[tuple[int, int], tuple[int, str]] = {}
    for backup in _find_backups(Path(source)):
        report.backups.append(backup.name)
        try:
            manifest = _read_manifest(backup)
        except BackupError as error:
            report.problems.append(str(error))
            continue
        total = sum(entry["size"] for entry in manifest["files"].values())
        done = 0
        for name, entry in manifest["files"].items():
            report.files += 1
            report.bytes += entry["size"]
            if problem := _check_file(backup / name, entry, known):
                report.problems.append(f"{backup.name}/{name}: {problem}")
            done += entry["size"]
            if progress:
                progress(Progress(done, total, "bytes"))
        found = {path.relative_to(backup).as_posix() for path in backup.rglob("*") if not path.is_dir()}
        report.problems += [
            f"{backup.name}/{name}: not in the manifest"
            for name in sorted(found - manifest["files"].keys() - {MANIFEST})
        ]
    return report


def restore_backup(source: Path | str, data: Path | str, *, progress: OnProgress | None = None) -> RestoreReport:
    """Restore a backup, or the latest one of a folder, into `data`, which must be missing or empty.

    Every file is checked against the manifest. The folder appears only when all of it is on disk. Raises
    `BackupError` and OSError.
    """
    backup, home = _find_backups(Path(source))[-1], Path(data).absolute()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise BackupError(f"{home} is not empty: restore into a new folder, and change over to it when you are content")
    manifest = _read_manifest(backup)
    taken_at = str(manifest.get("created_at", backup.name))
    report = RestoreReport(str(backup), str(home), taken_at, ledger=manifest["ledger"])
    report.warnings = [warning.format(taken_at=taken_at) for warning in _WARNINGS]
    total = sum(entry["size"] for entry in manifest["files"].values())
    with scratch_folder(home.parent, f".{home.name}-restore-") as scratch:
        for name, entry in manifest["files"].items():
            path = scratch / name
            make_folder(path.parent)
            try:
                size, digest = _copy_file(backup / name, path, None)
            except OSError as error:
                raise BackupError(f"{backup / name} cannot be restored: {error.strerror}") from error
            if (size, digest) != (entry["size"], entry["sha256"]):
                raise BackupError(f"{backup / name} is damaged; nothing was restored. Restore another backup")
            report.files += 1
            report.bytes += size
            if progress:
                progress(Progress(report.bytes, total, "bytes"))
        Layout(scratch).create()
        for folder in sorted({path.parent for path in scratch.rglob("*")} | {scratch}, reverse=True):
            sync(folder)
        scratch.rename(home)
        sync(home.parent)
    return report


class _Copy:
    """The files being copied into a backup, with their manifest entries."""

    def __init__(self, folder: Path, previous: list[Path], progress: OnProgress | None) -> None:
        self.folder = folder
        self.entries: dict[str, dict[str, Any]] = {}
        self.reused = 0
        self._before: dict[str, Any] = {}
        self._previous = previous
        with suppress(BackupError):  # damaged: copy everything again
            self._before = {
                name: entry for backup in previous for name, entry in _read_manifest(backup)["files"].items()
            }
        self._progress = progress

    def run(self, files: dict[str, Path]) -> None:
        total = sum(path.stat().st_size for path in files.values() if path.exists())
        done = 0
        for name, path in files.items():
            with suppress(FileNotFoundError):  # only without links: just replaced or sealed
                self._add(name, path)
            done += self.entries.get(name, {"size": 0})["size"]
            if self._progress:
                self._progress(Progress(min(done, total), total, "bytes"))

    def _add(self, name: str, path: Path) -> None:
        status = path.stat()
        stamp = {"mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
        # A segment that is being written to: what is acknowledged is there, perhaps with half a line behind it.
        whole_lines = name.startswith("spool/")
        known = self._before.get(name)
        if (
            known
            and not whole_lines
            and (known["size"], known.get("mtime_ns"), known.get("inode"))
            == (status.st_size, status.st_mtime_ns, status.st_ino)
            and self._link(name)
        ):
            self.entries[name] = known
            self.reused += 1
            return
        length = _whole_lines(path) if whole_lines else None
        if length == 0:
            return
        target = self.folder / name
        make_folder(target.parent)
        size, digest = _copy_file(path, target, length)
        self.entries[name] = {"size": size, "sha256": digest, **stamp}

    def _link(self, name: str) -> bool:
        before, target = self._previous[0] / name, self.folder / name
        make_folder(target.parent)
        try:
            if before.stat().st_size != self._before[name]["size"]:
                return False
            os.link(before, target)
        except OSError:
            return False
        return True


def _copy_databases(layout: Layout, staged: Path) -> tuple[str, dict[str, Path]]:
    """Copy the SQLite databases: what became of the ledger, and the copies by their names in a backup.

    Beside the data folder's other files, where SQLite's locks work: the target may be a share without any.
    """
    sources = {name: layout.data / name for name in _DATABASES if (layout.data / name).exists()}
    url = sa.make_url(layout.ledger_url)
    if url.get_backend_name() != "sqlite":
        told = f"not included: it is on {url.get_backend_name()}; dump it with the tools of that database (pg_dump)"
    elif not Path(str(url.database)).exists():
        told = "there is none yet"
    else:
        told = "included"
        sources[_LEDGER] = Path(str(url.database))
    copies = {}
    for name, source in sources.items():
        copies[name] = staged / Path(name).name
        _copy_database(source, copies[name])
    return told, copies


def _copy_database(source: Path, target: Path) -> None:
    os.close(open_private(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        with closing(sqlite3.connect(source, timeout=60)) as live, closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            if (found := copy.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise BackupError(f"{source} is damaged ({found}); put a sound copy in its place, then back up")
    except sqlite3.Error as error:
        raise BackupError(f"{source} cannot be backed up: {error}") from error


def _find_files(layout: Layout) -> dict[str, Path]:
    """Every file of a backup except databases, by its name there. A segment being written counts as sealed."""
    files = {}
    for number, path in enumerate(list_segments(layout, ".open", ".seal")):
        sealed = f"spool/{path.stem}.seal"
        files[sealed if sealed not in files else f"spool/{path.stem}-{number}.seal"] = path
    for table in PARTITIONS:
        for path in list_files(layout, table):
            files[path.relative_to(layout.data).as_posix()] = path
    for folder in _FOLDERS:
        for path in sorted((layout.data / folder).rglob("*")):
            place = path.relative_to(layout.data)
            hidden = any(part.startswith(".") for part in place.parts)  # of an export or erasure under way
            if not hidden and not path.name.endswith(_NOT_COPIED) and path.is_file() and not path.is_symlink():
                files[place.as_posix()] = path
    for name in _FILES:
        if (layout.data / name).is_file():
            files[name] = layout.data / name
    for database in (*_DATABASES, _LEDGER):
        files.pop(database, None)
    return files


def _find_settings() -> dict[str, Path]:
    """reasoning.toml, which holds no secrets."""
    path = settings_file().absolute()
    return {"config/reasoning.toml": path} if path.is_file() else {}


def _link_all(layout: Layout, staged: Path) -> dict[str, Path] | None:
    """Hard-link each file, so that it outlives its first name. None where the file system has no hard links."""
    linked = {}
    for number, (name, path) in enumerate(_find_files(layout).items()):
        for source in (path, path.with_suffix(".seal")):  # its writer may be sealing it
            try:
                os.link(source, staged / str(number))
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in _NO_LINKS:
                    return None
                raise
            linked[name] = staged / str(number)
            break
    return linked


def _left_out(layout: Layout) -> list[str]:
    included = {"spool", *PARTITIONS, *_FOLDERS, *_FILES, *(name.split("/")[0] for name in _DATABASES), _LEDGER}
    names = {path.name for path in layout.data.iterdir()}
    return sorted(name for name in names - included if not name.endswith((*_NOT_COPIED, ".staging")) and name[0] != ".")


def _copy_file(source: Path, target: Path, length: int | None) -> tuple[int, str]:
    """Copy a file, or the first `length` bytes of it, durably. Its size and sha256."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as file, open(target, "wb", opener=open_private) as copy:
        while chunk := file.read(_CHUNK if length is None else min(_CHUNK, length - size)):
            copy.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    return size, digest.hexdigest()


def _hash_file(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _whole_lines(path: Path) -> int:
    """The length of a segment up to its last newline. A torn line was not yet acknowledged."""
    end = path.stat().st_size
    with path.open("rb") as file:
        for start in range((end - 1) // _CHUNK * _CHUNK, -1, -_CHUNK):
            file.seek(start)
            at = file.read(min(_CHUNK, end - start)).rfind(b"\n")
            if at >= 0:
                return start + at + 1
    return 0


def _dump_manifest(entries: dict[str, dict[str, Any]], report: BackupReport, now: datetime) -> bytes:
    files = dict(sorted(entries.items()))
    manifest = {
        "version": _VERSION,
        "created_at": now.astimezone(UTC).isoformat(),
        "ledger": report.ledger,
        "left_out": report.left_out,
        "files": files,
        "files_sha256": _digest(files),
    }
    return orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n"


def _digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(files, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _read_manifest(backup: Path) -> dict[str, Any]:
    path = backup / MANIFEST
    try:
        manifest = orjson.loads(path.read_bytes())
        sound = manifest["files_sha256"] == _digest(manifest["files"])
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{path} cannot be read ({error}): the backup is damaged; use another one") from error
    if version != _VERSION:
        raise BackupError(f"{path} is of version {version}, which this version does not know: upgrade custom-reasoning")
    names = [Path(name) for name in manifest["files"]]
    if not sound or any(name.is_absolute() or ".." in name.parts for name in names):
        raise BackupError(f"{path} is damaged: it does not fit its own sha256; use another backup")
    return dict(manifest)


def _check_file(path: Path, entry: dict[str, Any], known: dict[tuple[int, int], tuple[int, str]]) -> str | None:
    try:
        status = path.stat()
        place = status.st_dev, status.st_ino  # what backups share is read once
        if place not in known:
            known[place] = _hash_file(path)
    except OSError as error:
        return error.strerror or str(error)
    size, digest = known[place]
    if size != entry["size"]:
        return f"its size is {size}, not {entry['size']}"
    if digest == entry["sha256"]:
        return None
    return "its content is not what was backed up (sha256); delete this file, and the next backup copies it anew"


def _list_backups(home: Path) -> list[Path]:
    """The finished backups of a folder, the latest last."""
    return sorted(path.parent for path in home.glob(f"[0-9]*/{MANIFEST}"))


def _find_backups(source: Path) -> list[Path]:
    if (source / MANIFEST).exists():
        return [source]
    if backups := _list_backups(source):
        return backups
    raise BackupError(f"there is no finished backup in {source}: name the folder that `reasoning backup` wrote to")


def _rename(partial: Path, home: Path, now: datetime, previous: list[Path]) -> Path:
    for name in _names(now, previous[-1].name if previous else ""):
        if not (home / name).exists():
            with suppress(FileExistsError):  # another backup of this second
                partial.rename(home / name)
                sync(home)
                return home / name
    raise AssertionError("names do not end")


def _names(now: datetime, last: str) -> Iterator[str]:
    """Names in the order of the backups, even if the clock was set back."""
    stem = max(now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ"), last.partition(".")[0])
    if stem > last:
        yield stem
    for number in range(1, 10_000):
        if (name := f"{stem}.{number:04}") > last:
            yield name


def _remove_backup(backup: Path) -> None:
    gone = backup.with_name(f"{_PARTIAL}{backup.name}")
    backup.rename(gone)
    remove_tree(gone)
