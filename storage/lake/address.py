"""`REASONING_LOG`: where the tables of the decision log are, if not in the data folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from storage.errors import DataFolderError

_FORM = "ducklake:postgresql://USER:PASSWORD@HOST/DATABASE?data=s3://BUCKET/FOLDER"
_STORES = ("file", "s3", "gs")


@dataclass(frozen=True)
class LakeAddress:
    """The catalog's URL, with its password, and the folder or bucket of the data files, which ends with a slash."""

    catalog: str
    data: str

    def __repr__(self) -> str:
        """Without the password."""
        return f"LakeAddress({urlsplit(self.catalog).hostname}, {self.data})"


def parse_log_url(url: str) -> LakeAddress | None:
    """The address that `REASONING_LOG` gives; None where it is empty: the tables are in the data folder.

    Raises `DataFolderError`, never with a password.
    """
    if not url:
        return None
    scheme = url.partition(":")[0]
    if scheme in ("s3", "gs", "gcs", "r2", "az", "https"):
        raise DataFolderError(
            f"REASONING_LOG: {scheme}: names a bucket without a catalog, and files in a bucket cannot be replaced in "
            f"one step, so rows would be lost or doubled; name the catalog, too: {_FORM}"
        )
    if scheme != "ducklake":
        raise DataFolderError(f"REASONING_LOG: {scheme[:20]!r} is no kind of log; write {_FORM}, or unset it")
    try:
        parts = urlsplit(url.removeprefix("ducklake:"))
        query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise DataFolderError(f"REASONING_LOG is not a URL; write {_FORM}") from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise DataFolderError(
            f"REASONING_LOG: the catalog is {parts.scheme[:20]!r}, but several hosts need PostgreSQL; write {_FORM}"
        )
    data = query.pop("data", "")
    store = urlsplit(data)
    if store.scheme not in _STORES:
        raise DataFolderError(
            f"REASONING_LOG: data={data[:80]!r} is none of {', '.join(f'{name}://' for name in _STORES)}; write {_FORM}"
        )
    if store.scheme == "file" and (store.netloc or not Path(store.path).is_absolute()):
        raise DataFolderError(f"REASONING_LOG: data={data[:80]!r} is no absolute path; write data=file:///FOLDER")
    catalog = urlunsplit(("postgresql", parts.netloc, parts.path, urlencode(query), ""))
    return LakeAddress(catalog, data.rstrip("/") + "/")
