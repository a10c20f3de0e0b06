"""Storage: the decision log, its DuckDB views, and the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.log.views import connect as connect
    from storage.log.views import read as read
    from storage.log.views import refresh as refresh
    from storage.log.views import sql as sql

_VIEWS = ("connect", "read", "refresh", "sql")
__all__ = ["connect", "read", "refresh", "sql"]


def __getattr__(name: str) -> Any:
    # Late: duckdb takes a quarter of a second to import, and the ledger does not need it.
    if name in _VIEWS:
        from storage.log import views

        return getattr(views, name)
    raise AttributeError(f"module 'storage' has no attribute {name!r}")
