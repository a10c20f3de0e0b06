"""The kind of volume that the data folder is on, and the other hosts that are alive there.

`flock` is trusted between processes of one mount, and between hosts only on file systems that are known to share
locks. Another host's work is taken over after `GRACE` seconds without a change, by this host's monotonic clock. The
clocks of hosts are never compared.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import orjson

from reasoning.io import hosts
from storage.errors import DataFolderBusy, DataFolderError
from storage.files import write_atomic
from storage.layout import Layout, read_settings

VolumeKind = Literal["local", "shared", "unknown"]  # of one host; locks hold between hosts; nobody knows

_LOCAL = frozenset(
    (
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "reiserfs", "nilfs2", "ubifs"),
        *("tmpfs", "ramfs", "rootfs", "devtmpfs", "overlay", "aufs", "shiftfs", "ecryptfs", "fuse.fuse-overlayfs"),
        *("vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "apfs", "hfs", "hfsplus", "ufs"),
    )
)
_SHARED = frozenset(("ceph", "gfs2", "ocfs2"))
# f_type of statfs(2), for where /proc is not mounted.
_MAGIC = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs",
    0xCA451A4E: "bcachefs",
    0x01021994: "tmpfs",
    0x794C7630: "overlay",
    0x6969: "nfs without /proc",
    0x65735546: "fuse",
    0x01021997: "9p",
    0x6A656A63: "virtiofs",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x47504653: "gpfs",
    0x00C36400: "ceph",
}
_ESCAPE = re.compile(r"\\([0-7]{3})")
_SEEN_KEPT = 7 * 86_400  # seconds after which what a host saw is deleted


@dataclass(frozen=True)
class Mount:
    """Where a folder is mounted from. `options` are those of the mount and of the file system."""

    point: str
    fstype: str
    options: frozenset[str]


def find_mount(folder: Path, mounts: str | None = None) -> Mount:
    """The mount that an existing folder is on. `mounts` has the form of /proc/self/mountinfo."""
    path = folder.resolve()
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return _mount_without_proc(path)
    best = Mount("/", "unknown", frozenset())
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or not rest:
            continue
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
        # Of several on one point the last is on top.
        if len(point) >= len(best.point) and (point == "/" or path == Path(point) or Path(point) in path.parents):
            options = {*fields[5].split(","), *(rest[2].split(",") if len(rest) > 2 else ())}
            best = Mount(point, rest[0], frozenset(options))
    return best


def classify(mount: Mount) -> VolumeKind:
    """Whether locks on this mount are local to one host, shared between hosts, or unknown."""
    fstype, options = mount.fstype, mount.options
    if fstype in ("nfs", "nfs4"):
        own = {"nolock", "local_lock=all", "local_lock=flock"}
        return "unknown" if options & own else "shared"
    if fstype == "lustre":
        return "shared" if "flock" in options else "unknown"
    if fstype in _SHARED:
        return "shared"
    return "local" if fstype in _LOCAL else "unknown"


def volume_kind(layout: Layout) -> VolumeKind:
    """The kind of volume that a data folder is on; of its spool where that is another one and worse."""
    kinds = [classify(mount) for mount in _mounts(layout)]
    return "unknown" if "unknown" in kinds else "shared" if "shared" in kinds else "local"


def volume_setting() -> str:
    """`volume` of `[storage]` in reasoning.toml, or REASONING_VOLUME: auto, single-host or shared-locks."""
    return read_settings().volume


def check_volume(layout: Layout, verb: str) -> VolumeKind:
    """The kind of volume. Raises `DataFolderError` if another host's lock may be invisible, unless configured."""
    kind = volume_kind(layout)
    if kind == "unknown" and volume_setting() == "auto":
        mount = next(mount for mount in _mounts(layout) if classify(mount) == "unknown")
        raise DataFolderError(
            f"{layout.data} is on a {mount.fstype} file system (mounted at {mount.point}), where the locks of one host "
            f"may not hold for another: {verb} was not begun, because records of the other host could be lost. If no "
            'other host uses this folder, set REASONING_VOLUME=single-host (or `volume = "single-host"` under '
            "[storage] in reasoning.toml); if its locks do hold between hosts, set shared-locks; otherwise put the "
            "data folder on a local disk (docs/guides/storage.md)"
        )
    return kind


def check_alone(layout: Layout, verb: str) -> None:
    """For a volume configured as single-host: raise `DataFolderBusy` if another host is seen there.

    Looks at the segments of its agents, and at the claims of its `serve` and its verbs.
    """
    if volume_setting() != "single-host" or volume_kind(layout) != "unknown":
        return
    own, marks = hosts.host_tag(layout.data), {}
    for path in (*layout.spool.glob("*.open"), layout.lock, layout.serve_lock):
        with suppress(OSError, ValueError):  # sealed or withdrawn this moment
            segment = path.suffix == ".open"
            tag = hosts.segment_tag(path.stem) if segment else orjson.loads(path.read_bytes()).get("tag")
            if tag not in (None, own):
                marks[path.stem] = file_mark(path)
    for name, seconds in quiet_for(layout, "writers", marks).items():
        if seconds < hosts.GRACE:
            raise DataFolderBusy(
                f"{layout.data}: another host, or another mount of it, is at work there too ({name}, "
                f"unchanged for {seconds:.0f} of {hosts.GRACE:g} s), yet `volume` is single-host: {verb} was not "
                "begun. Stop the agents there, or give each host a data folder of its own (docs/guides/storage.md)"
            )


def is_foreign(tag: str | None, own: str, kind: VolumeKind) -> bool:
    """Whether work of this host tag may be another host's, so that `flock` says nothing about it.

    On a local volume an earlier boot of this machine is not another host: what it held is free. Where nobody knows
    whether locks hold, all work is judged by its signs of life, also that under our own tag: copied machines may have
    equal ones.
    """
    if kind == "unknown":
        return True
    return tag is not None and tag != own and not (kind == "local" and hosts.same_machine(tag, own))


def quiet_for(layout: Layout, group: str, marks: Mapping[str, str]) -> dict[str, float]:
    """For how many seconds each of these was seen unchanged by this host, 0 for what is seen for the first time.

    `marks` gives by name what changes with every sign of life; `group` is whose names they are. What this host saw is
    kept between its processes in `.seen-<host tag>.json`.
    """
    path = layout.data / f".seen-{hosts.host_tag(layout.data)}.json"
    seen: dict[str, dict[str, list[Any]]] = {}
    with suppress(OSError, ValueError):
        seen = orjson.loads(path.read_bytes())
    before = seen.get(group, {})
    if not marks and not before:
        return {}
    now, after, quiet = hosts.steady(), {}, {}
    for name, mark in marks.items():
        known = before.get(name)
        since = known[1] if known and known[0] == mark and known[1] <= now else now
        after[name] = [mark, since]
        quiet[name] = now - since
    if after != before:
        with suppress(OSError):  # a full disk: nothing is taken over, which is safe
            write_atomic(path, orjson.dumps(seen | {group: after}))
            written = path.stat().st_mtime
            for other in layout.data.glob(".seen-*.json"):
                if written - other.stat().st_mtime > _SEEN_KEPT:
                    other.unlink(missing_ok=True)
    return quiet


def file_mark(path: Path) -> str:
    """What changes with every sign of life of who writes a file. Raises OSError."""
    status = path.stat()
    return f"{status.st_mtime_ns} {status.st_size}"


def _mounts(layout: Layout) -> list[Mount]:
    folders = [folder for folder in (layout.data, layout.spool) if folder.is_dir()]
    return [_find_mount(folder, folder.stat().st_dev) for folder in folders]


@lru_cache(maxsize=256)
def _find_mount(folder: Path, device: int) -> Mount:
    return find_mount(folder)


def _mount_without_proc(path: Path) -> Mount:
    if sys.platform.startswith("linux"):
        buffer = ctypes.create_string_buffer(256)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.statfs(os.fsencode(path), buffer):
            return Mount("/", "unknown", frozenset())
        magic = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_long)).contents.value & 0xFFFFFFFF
        return Mount("/", _MAGIC.get(magic, f"0x{magic:x}"), frozenset())
    try:  # macOS: "/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled)"
        listing = subprocess.run(["/sbin/mount"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return Mount("/", "unknown", frozenset())
    best = Mount("/", "unknown", frozenset())
    for line in listing.splitlines():
        place, _, options = line.rpartition(" (")
        point = place.partition(" on ")[2]
        names = [name.strip() for name in options.rstrip(")").split(",")]
        if len(point) >= len(best.point) and (point == "/" or path == Path(point) or Path(point) in path.parents):
            best = Mount(point, names[0], frozenset(names))
    return best
