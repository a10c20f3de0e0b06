"""Which upstream paths a key may use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from urllib.parse import unquote_to_bytes

EVERYTHING = ("*", "DELETE *")
"""All but administration, which only a pattern that names it allows."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def is_administration(path: bytes, roots: Collection[bytes]) -> bool:
    """Could any server take this path for administration of the account, which has these `roots`? In doubt it could."""
    decoded = (unquote_to_bytes(unquote_to_bytes(path)) if b"%" in path else path).lower()
    return any(segment.partition(b";")[0].strip() in roots for segment in decoded.split(b"/")[1:4])


def check_pattern(pattern: str) -> str | None:
    """What is wrong with a pattern of `paths`, if anything is."""
    method, space, path = pattern.rpartition(" ")
    if space and method not in METHODS:
        return f"{method!r} is not one of {', '.join(METHODS)}"
    if path != "*" and (not path.startswith("/") or "*" in path[:-1]):
        return "write a path such as /v1/files/*, with * at its end only, or * for all but administration"
    if not path.isascii() or not path.isprintable() or "%" in path:
        return "a path of printable ASCII is needed"
    return None


def is_allowed(patterns: Sequence[str], method: str, path: bytes, administration_roots: Collection[bytes]) -> bool:
    """Does one of `patterns` allow the request?

    A pattern is `[METHOD ]PATH`; `*` at its end stands for any rest. Without a method it stands for all but DELETE.
    Administration needs a pattern that names its root.
    """
    written = path.decode("latin-1")
    administration = is_administration(path, administration_roots)
    for pattern in patterns:
        wanted, _, allowed = pattern.rpartition(" ")
        if wanted and wanted != ("GET" if method == "HEAD" else method) and wanted != method:
            continue
        if not wanted and (method == "DELETE" or method not in METHODS):
            continue
        if allowed == "*":
            if not administration:
                return True
        elif administration and not is_administration(allowed.rstrip("*").encode(), administration_roots):
            continue
        elif allowed == written or (allowed.endswith("*") and written.startswith(allowed[:-1])):
            return True
    return False
