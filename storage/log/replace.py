"""Replace files of a partition by new ones in one step, which a reader sees done or not done.

On Linux a new folder, with the new files and second names (hard links) of those that stay, is *exchanged* with the old
one (`renameat2`), which is the commit. Where the system cannot, a *manifest* commits: `_hidden.json` in the folder
names files that are not part of the table. It first names the new files, which are then moved in; writing it anew, with
the names of the old files, is the commit; then those are deleted and it goes too. Whatever it names is garbage, so
recovery after a kill is to delete that.

Everything here is for one who holds the data folder's lock, and takes milliseconds: what takes long, writing the new
files, is done before (`storage.log.rewrite`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

import orjson

from storage.errors import TableError
from storage.files import CANNOT_EXCHANGE, exchange, make_folder, remove_abandoned, remove_tree, sync, write_atomic
from storage.layout import Layout
from storage.locks import check_held
from storage.log.schema import PARTITIONS, PartitionKey
from storage.log.table import HIDDEN, foreign_files, list_partitions, live_files

Method = Literal["auto", "exchange", "manifest"]

SCRATCH = ".rewrite-"
"""Prefix of the folders in the data folder where new files are written before the lock is taken."""

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EINVAL)


def replace_files(
    layout: Layout, key: PartitionKey, old: list[Path], new: list[Path], *, scratch: Path, method: Method = "auto"
) -> None:
    """Replace the `old` files of a partition by the `new` ones, which are in `scratch`. Others stay as they are.

    A folder with files of others' in it is kept (the manifest's way). Where a folder was exchanged, the old one is
    moved to `scratch`, whose owner deletes it without the lock. Raises `TableError`, `LockLost` and OSError; the
    partition is then as it was.
    """
    folder = own_folder(layout, key)
    _settle(folder)
    gone = set(old)
    others = [path for path in live_files(folder) if path not in gone]
    foreign = foreign_files(folder)
    if not new and not others and not foreign:
        remove_partition(layout, key, scratch=scratch)
        return
    check_held(layout)
    with _on_one_disk(layout, folder):
        if method == "manifest" or (method == "auto" and foreign):
            _commit_by_manifest(folder, old, new)
            return
        staged = layout.staging(key.table) / uuid4().hex
        make_folder(staged)
        try:
            _exchange(folder, staged, others, new)
        except OSError as error:
            if method == "exchange" or error.errno not in (*CANNOT_EXCHANGE, *_NO_LINKS):
                raise
            _commit_by_manifest(folder, old, [path if path.exists() else staged / path.name for path in new])
        finally:
            _discard(staged, scratch)


def _exchange(folder: Path, staged: Path, others: list[Path], new: list[Path]) -> None:
    for path in others:
        os.link(path, staged / path.name)
    for path in new:
        path.rename(staged / path.name)
    sync(staged)
    exchange(staged, folder)
    sync(folder.parent)
    sync(staged.parent)


def _discard(folder: Path, scratch: Path) -> None:
    """Take a folder out of the way, so that its files are deleted without the lock: large ones take a while."""
    with suppress(OSError):
        folder.rename(scratch / f"old-{folder.name}")
        return
    remove_tree(folder)


def _commit_by_manifest(folder: Path, old: list[Path], new: list[Path]) -> None:
    if new:
        write_atomic(folder / HIDDEN, orjson.dumps([path.name for path in new]))
        for path in new:
            path.rename(folder / path.name)
        sync(folder)
    write_atomic(folder / HIDDEN, orjson.dumps([path.name for path in old]))
    _delete_hidden(folder)


def _settle(folder: Path) -> None:
    """Delete what a killed process left hidden: a manifest written over it would show it again."""
    if (folder / HIDDEN).exists():
        _delete_hidden(folder)


def _delete_hidden(folder: Path) -> None:
    hidden = folder / HIDDEN
    for name in orjson.loads(hidden.read_bytes()):
        (folder / name).unlink(missing_ok=True)
    sync(folder)
    hidden.unlink()
    sync(folder)


def remove_partition(layout: Layout, key: PartitionKey, *, scratch: Path | None = None) -> None:
    """Take a partition out of its table in one step, then delete its files, or leave that to the owner of `scratch`."""
    folder = own_folder(layout, key)
    check_held(layout)
    _settle(folder)
    if foreign_files(folder):
        write_atomic(folder / HIDDEN, orjson.dumps([path.name for path in live_files(folder)]))
        _delete_hidden(folder)
        return
    staging = layout.staging(key.table)
    make_folder(staging)
    removed = staging / uuid4().hex
    with _on_one_disk(layout, folder):
        folder.rename(removed)
    sync(folder.parent)
    if scratch is None:
        remove_tree(removed)
    else:
        _discard(removed, scratch)


def remove_files(layout: Layout, key: PartitionKey, files: list[Path]) -> None:
    """Take some files of a partition out of its table in one step, then delete them."""
    folder = own_folder(layout, key)
    if len(files) == len(live_files(folder)):
        remove_partition(layout, key)
        return
    check_held(layout)
    _settle(folder)
    write_atomic(folder / HIDDEN, orjson.dumps([path.name for path in files]))
    _delete_hidden(folder)


def own_folder(layout: Layout, key: PartitionKey) -> Path:
    """The folder of a partition. Raises `TableError` where it is a link, which cannot be replaced in one step."""
    folder = layout.data / key.folder
    if folder.is_symlink():
        raise TableError(
            f"{folder} is a symbolic link, so its files cannot be replaced in one step: move the folder itself there"
        )
    return folder


@contextmanager
def _on_one_disk(layout: Layout, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise TableError(f"{folder} cannot be replaced: {use_one_disk(layout)}, and run it again") from error


def use_one_disk(layout: Layout) -> str:
    """The mend where a rename crosses from one file system to another (EXDEV)."""
    return (
        f"the tables must be on the file system of {layout.data}, so that a file gets into them in one step: move the "
        "data folder as a whole (it may be a link itself) instead of linking or mounting a part of it"
    )


def recover(layout: Layout) -> None:
    """Undo, or finish, what a killed landing, compaction, expiry or erasure left."""
    remove_abandoned(layout.data.glob(f"{SCRATCH}*"))
    for table in PARTITIONS:
        remove_tree(layout.staging(table))
        for key in list_partitions(layout, table):
            _settle(layout.data / key.folder)
            for temporary in (layout.data / key.folder).glob("*.tmp"):
                temporary.unlink(missing_ok=True)
    for folder in (layout.quarantine, layout.spool):
        for temporary in folder.glob("*.tmp"):
            temporary.unlink(missing_ok=True)
