"""Progress of a Prefect run: its log, and a progress artifact."""

from __future__ import annotations

import contextvars
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

from storage.progress import Progress

if TYPE_CHECKING:
    from logging import Logger, LoggerAdapter

_EVERY_SECONDS = 2.0  # an update of an artifact is a request to the server


class RunProgress:
    """A progress callback that writes to the log of the Prefect run and to a progress artifact of it.

    `key` is the artifact's: lower case and dashes. The artifact appears with the first call.
    """

    def __init__(self, key: str, description: str, logger: Logger | LoggerAdapter[Any]) -> None:
        self.key, self.description, self._logger = key, description, logger
        self._artifact: UUID | None = None
        self._updated_at = float("-inf")
        # Work may report from a thread of its own, or from within an event loop there: it is this run's progress still.
        self._context = contextvars.copy_context()

    def __call__(self, progress: Progress) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if time.monotonic() - self._updated_at < _EVERY_SECONDS and progress.fraction < 1:
            return
        self._updated_at = time.monotonic()
        percent = round(100 * progress.fraction, 1)
        self._logger.info("%s: %g %% %s", self.description, percent, progress.message)
        if self._artifact is None:
            create: Any = create_progress_artifact  # whose types do not know of _sync
            self._artifact = self._context.run(create, percent, key=self.key, description=self.description, _sync=True)
        else:
            update: Any = update_progress_artifact
            self._context.run(update, self._artifact, percent, _sync=True)
