"""Where everything is in the data folder (docs/concepts/architecture.md, "The data folder")."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from reasoning.config import Config, load_config
from reasoning.errors import ConfigError
from storage.errors import DataFolderError
from storage.files import make_folder

# Any of these makes a folder one of ours.
_MARKS = (
    "spool",
    "decisions",
    "feedback",
    "datasets",
    "quarantine",
    "emulator",
    "ledger.sqlite",
    "routes.json",
    "installation.ids",
)
_RIGHTS_TOLD = ".rights-told"  # of `cli.options`: a folder that it was told of is one of ours, or empty


def read_settings() -> Config:
    """The configuration, for its settings of storage. Raises `DataFolderError` where it cannot be read or is wrong."""
    try:
        return load_config()
    except ConfigError as error:
        raise DataFolderError(str(error)) from error


@dataclass(frozen=True)
class Layout:
    """The paths inside one data folder. Making a `Layout` touches nothing."""

    data: Path

    def __init__(self, data: Path | str) -> None:
        object.__setattr__(self, "data", Path(data))

    @property
    def spool(self) -> Path:
        return self.data / "spool"

    @property
    def quarantine(self) -> Path:
        return self.data / "quarantine"

    @property
    def decisions(self) -> Path:
        return self.data / "decisions"

    @property
    def feedback(self) -> Path:
        return self.data / "feedback"

    @property
    def datasets(self) -> Path:
        return self.data / "datasets"

    @property
    def erasures(self) -> Path:
        return self.data / "erasures"

    @property
    def evaluations(self) -> Path:
        return self.data / "evaluations"

    @property
    def quality(self) -> Path:
        return self.data / "quality"

    @property
    def routes(self) -> Path:
        return self.data / "routes.json"

    @property
    def emulator(self) -> Path:
        return self.data / "emulator"

    @property
    def lock(self) -> Path:
        return self.data / ".lock"

    @property
    def expiry_clock(self) -> Path:
        return self.data / ".expiry-clock.json"

    @property
    def serve_lock(self) -> Path:
        return self.data / ".serve.lock"

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy URL of the ledger: `REASONING_LEDGER_URL`, else the SQLite file in the data folder."""
        return os.environ.get("REASONING_LEDGER_URL") or f"sqlite:///{self.data.absolute() / 'ledger.sqlite'}"

    @property
    def log_url(self) -> str:
        """`REASONING_LOG`: where the tables of the log are, with a password; empty: in the data folder."""
        return os.environ.get("REASONING_LOG", "")

    def table(self, name: str) -> Path:
        """Folder of a table: `decisions` or `feedback`."""
        return self.data / name

    def staging(self, name: str) -> Path:
        """Where files of a table are written before their commit: beside it, as `**` descends into hidden folders."""
        return self.data / f"{name}.staging"

    def create(self) -> Layout:
        """Make the folders that do not exist yet. Raises `DataFolderError` where they cannot be."""
        try:
            for folder in (self.spool, self.quarantine, self.decisions, self.feedback):
                make_folder(folder)
        except OSError as error:
            raise DataFolderError(
                f"cannot make the data folder {self.data}: {error.strerror}; "
                "set REASONING_DATA (or `data` in reasoning.toml) to a folder that can be written"
            ) from error
        return self

    def check(self) -> Layout:
        """Raise `DataFolderError` unless this is a data folder of ours, or an empty folder that may become one."""
        mend = "give the folder that the agents write to as --data FOLDER, REASONING_DATA, or `data` in reasoning.toml"
        try:
            str(self.data).encode()
        except UnicodeEncodeError:
            raise DataFolderError(f"the name of the data folder {str(self.data)!a} is not UTF-8: rename it") from None
        if not self.data.exists():
            raise DataFolderError(f"there is no data folder {self.data}: {mend}")
        if not self.data.is_dir():
            raise DataFolderError(f"{self.data} is not a folder: {mend}")
        names = {path.name for path in self.data.iterdir()} - {_RIGHTS_TOLD}
        if names and not names.intersection(_MARKS):
            raise DataFolderError(f"{self.data} is not a data folder (it has none of {', '.join(_MARKS)}): {mend}")
        return self
