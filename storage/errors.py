"""Errors of what is kept.

::

    ReasoningError
    └── StorageError
        ├── DataFolderError       there is no data folder there, or it is not one of ours
        ├── DataFolderBusy        another process is landing, compacting, expiring or erasing (names it)
        ├── LandingError          a segment could not be landed: it stays in the spool, run again
        └── TableError            a partition is not as it should be, or could not be rewritten
"""

from __future__ import annotations

from reasoning.errors import ReasoningError


class StorageError(ReasoningError):
    """Base of the storage room's errors."""


class DataFolderError(StorageError):
    """There is no data folder there, or it is not one of ours."""


class DataFolderBusy(StorageError):
    """Another process holds the data folder's lock."""


class LandingError(StorageError):
    """A segment could not be landed. It stays in the spool; landing again takes it up where it stopped."""


class TableError(StorageError):
    """A partition of the decision log is not as it should be, or could not be rewritten. The old one is untouched."""
