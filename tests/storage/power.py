"""What a disk may hold after the power went out, at any moment of what a process did to a folder.

A run is written down by `disk_journal.c`. The rules of a cut are POSIX's: the content of a file is what its last fsync
made durable, and whatever was written since is there in whole, in half or not at all; a change to the names of a folder
is durable once that folder was synced, and until then there or not, each for itself. Only a rename or an exchange
between two folders is one step, as it is in every journal. (The idea of trying every state that the rules allow:
Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.)
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations
from operator import itemgetter
from pathlib import Path

_ALL_SUBSETS = 4  # changes of names that are not durable: of more, not every selection is tried


@dataclass(eq=False)
class Node:
    """A file or a folder. `versions` are the contents of a file that were synced, with the line that says so."""

    names: dict[str, Node] | None = None  # of a folder
    versions: list[tuple[int, bytes]] = field(default_factory=list)

    def contents(self, line: int) -> list[bytes]:
        """What a cut after `line` may leave of a file, the oldest first."""
        durable = next((content for at, content in reversed(self.versions) if at < line), b"")
        later = next((content for at, content in self.versions if at >= line), None)
        if later is None or later == durable:
            return [durable]
        return [durable, later[: (len(durable) + len(later)) // 2], later]


@dataclass(eq=False)
class Change:
    """One call's change to the names of folders: what each of them then is, or None."""

    line: int
    names: list[tuple[Node, str, Node | None]]
    durable_from: int | None = None  # the line after which a cut no longer undoes it


@dataclass
class Journal:
    """What was done to a folder, and what it held before."""

    root: Node
    before: dict[Node, dict[str, Node]]
    changes: list[Change]
    marks: dict[str, int]
    lines: int

    def states(self, seed: int = 0) -> Iterator[tuple[int, Node, dict[Node, bytes]]]:
        """Each different state that some cut may leave: the lines done by then, the folder, the files' contents."""
        dice = random.Random(seed)
        seen = set()
        for line in range(self.lines + 1):
            done = [change for change in self.changes if change.line < line]
            loose = [change for change in done if change.durable_from is None or change.durable_from >= line]
            for lost in _selections(loose):
                folder = self._folder([change for change in done if change not in lost])
                tree = dict(_walk(folder, ""))
                files = [node for node in tree.values() if node.names is None]
                for pick in (
                    itemgetter(0),
                    itemgetter(-1),
                    dice.choice,
                    dice.choice,
                ):  # the oldest contents, the newest, any
                    contents = {node: pick(node.contents(line)) for node in files}
                    state = frozenset((path, contents.get(node)) for path, node in tree.items())
                    if state not in seen:
                        seen.add(state)
                        yield line, folder, contents

    def _folder(self, changes: list[Change]) -> Node:
        folders = {node: dict(names) for node, names in self.before.items()}
        for folder, name, node in chain.from_iterable(change.names for change in changes):
            names = folders.setdefault(folder, {})
            names.pop(name, None)
            if node is not None:
                names[name] = node
        return _copy(folders, self.root)


def _selections(loose: list[Change]) -> Iterator[tuple[Change, ...]]:
    """Which of the changes that are not durable a cut undoes."""
    if len(loose) <= _ALL_SUBSETS:
        yield from chain.from_iterable(combinations(loose, n) for n in range(len(loose) + 1))
        return
    yield from (tuple(loose[n:]) for n in range(len(loose) + 1))
    yield from ((one,) for one in loose)
    yield from (tuple(change for change in loose if change is not one) for one in loose)


def _walk(folder: Node, path: str) -> Iterator[tuple[str, Node]]:
    for name, node in (folder.names or {}).items():
        yield f"{path}/{name}", node
        yield from _walk(node, f"{path}/{name}")


def _copy(folders: dict[Node, dict[str, Node]], folder: Node) -> Node:
    names = folders.get(folder, {})
    return Node({name: node if node.names is None else _copy(folders, node) for name, node in names.items()})


def write_state(place: Path, folder: Node, contents: dict[Node, bytes]) -> None:
    """Make the folder on the disk."""
    place.mkdir()
    assert folder.names is not None
    for name, node in folder.names.items():
        if node.names is None:
            (place / name).write_bytes(contents[node])
        else:
            write_state(place / name, node, contents)


def record(scratch: Path, data: Path, module: str, *arguments: str) -> Journal:
    """Run `module`'s `main(*arguments, mark)` in a process, and give what it did to `data`."""
    library, lines = scratch / "disk_journal.so", scratch / "journal"
    source = Path(__file__).with_name("disk_journal.c")
    if not library.exists():
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", library, source, "-ldl"], check=True)
    root = _read(data)
    before = {node: dict(node.names or {}) for node in _folders(root)}
    command = [sys.executable, "-m", __name__, str(library), str(data), str(lines), module, *arguments]
    subprocess.run(command, env=os.environ | {"LD_PRELOAD": str(library)}, check=True)
    return _replay(root, before, data, lines)


def _read(path: Path) -> Node:
    if path.is_dir():
        return Node({child.name: _read(child) for child in path.iterdir()})
    return Node(None, [(-1, path.read_bytes())])


def _folders(node: Node) -> Iterator[Node]:
    if node.names is not None:
        yield node
        for child in node.names.values():
            yield from _folders(child)


def _replay(root: Node, before: dict[Node, dict[str, Node]], data: Path, lines: Path) -> Journal:
    journal = Journal(root, before, [], {}, 0)

    def find(path: str) -> tuple[Node, str]:
        *parents, name = Path(path).relative_to(data).parts
        folder = root
        for parent in parents:
            assert folder.names is not None
            folder = folder.names[parent]
        return folder, name

    def change(*names: tuple[Node, str, Node | None]) -> None:
        journal.changes.append(Change(number, list(names)))
        for folder, name, node in names:
            assert folder.names is not None
            folder.names.pop(name, None)
            if node is not None:
                folder.names[name] = node

    for number, line in enumerate(lines.read_text().splitlines()):
        what, path, other = line.split("\t")
        journal.lines = number + 1
        if what == "mark":
            journal.marks[path] = number
            continue
        node: Node | None = root
        if Path(path) != data:
            folder, name = find(path)
            node = (folder.names or {}).get(name)
        if what in ("create", "mkdir"):
            change((folder, name, Node({} if what == "mkdir" else None)))
        elif what == "remove":
            change((folder, name, None))
        elif what in ("rename", "exchange", "link"):
            there, new = find(other)
            assert there.names is not None
            if what == "exchange":
                change((folder, name, there.names[new]), (there, new, node))
            elif what == "rename":
                change((folder, name, None), (there, new, node))
            else:
                change((there, new, node))
        elif what == "sync" and node is not None:
            node.versions.append((number, lines.with_name(f"{lines.name}.{number}").read_bytes()))
        elif what == "sync folder":
            for earlier in journal.changes:
                if earlier.durable_from is None and any(folder is node for folder, _, _ in earlier.names):
                    earlier.durable_from = number
    return journal


def main() -> None:
    import importlib

    name, data, lines, module, *arguments = sys.argv[1:]
    run = importlib.import_module(module).main
    library = ctypes.CDLL(name)
    library.disk_journal_begin(os.fsencode(data), os.fsencode(lines))
    run(Path(data), *arguments, lambda what: library.disk_journal_mark(what.encode()))
    library.disk_journal_end()


if __name__ == "__main__":
    main()
