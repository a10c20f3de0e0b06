"""The ledger as Arrow streams, for the views `costs` and `models`: read when a query asks, and as of then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.layout import Layout

_TIME = pa.timestamp("us", tz="UTC")
COSTS = pa.schema(
    [
        ("ts", _TIME),  # when the cost arose
        ("kind", pa.string()),
        ("amount_usd", pa.decimal128(18, 9)),
        ("what", pa.string()),
        ("decision_type", pa.string()),
        ("model_id", pa.string()),
        ("job_id", pa.string()),
        ("deployment_id", pa.string()),
        ("quantity", pa.int64()),
        ("recorded_at", _TIME),
        ("key", pa.string()),
    ]
)
MODELS = pa.schema(
    [
        ("model_id", pa.string()),
        ("state", pa.string()),
        ("decision_type", pa.string()),
        ("tier", pa.string()),
        ("base_model", pa.string()),
        ("dataset", pa.string()),  # its name on disk
        ("job_id", pa.string()),
        ("model_object_id", pa.string()),
        ("output_name", pa.string()),
        ("served_names", pa.list_(pa.string())),  # what `decisions.model` says, one per deployment
        ("created_at", _TIME),
        ("updated_at", _TIME),
    ]
)
_BATCH = 10_000


class LedgerStream:
    """What DuckDB can register: it asks for the schema when it binds a query, and for the rows when it runs it."""

    def __init__(self, layout: Layout, schema: pa.Schema, rows: Callable[[Any], Iterator[dict[str, Any]]]) -> None:
        self._layout = layout
        self._schema = schema
        self._rows = rows

    def __arrow_c_schema__(self) -> Any:
        return self._schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        reader = pa.RecordBatchReader.from_batches(self._schema, self._batches())
        return reader.__arrow_c_stream__(requested_schema)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        if not _exists(self._layout):
            return
        from storage.ledger.ledger import open_ledger

        with open_ledger(self._layout.data) as ledger, ledger.read() as connection:
            batch: list[dict[str, Any]] = []
            for row in self._rows(connection):
                batch.append(row)
                if len(batch) == _BATCH:
                    yield pa.RecordBatch.from_pylist(batch, schema=self._schema)
                    batch = []
            yield pa.RecordBatch.from_pylist(batch, schema=self._schema)


def cost_stream(layout: Layout) -> LedgerStream:
    """Rows of `COSTS`: the charges of the ledger. None without a ledger."""
    return LedgerStream(layout, COSTS, _charges)


def model_stream(layout: Layout) -> LedgerStream:
    """Rows of `MODELS`. None without a ledger."""
    return LedgerStream(layout, MODELS, _models)


def models_trained_on(layout: Layout, datasets: set[str]) -> list[str]:
    """Ids of the models in the ledger that were trained on datasets of these names, sorted."""
    if not datasets:
        return []
    reader = pa.RecordBatchReader.from_stream(model_stream(layout))
    return sorted(row["model_id"] for row in reader.read_all().to_pylist() if row["dataset"] in datasets)


def files_uploaded_of(layout: Layout, datasets: set[str]) -> list[str]:
    """Ids, at the provider, of the files that datasets of these names were uploaded as, sorted."""
    if not datasets or not _exists(layout):
        return []
    from storage.ledger.ledger import open_ledger
    from storage.ledger.rows import UploadedDataset

    with open_ledger(layout.data) as ledger:
        uploads = [row for row in ledger.find(UploadedDataset) if row.dataset in datasets]
    return sorted(
        file_id for row in uploads for file_id in (row.train_file_id, row.validation_file_id) if file_id is not None
    )


def _exists(layout: Layout) -> bool:
    """Without asking SQLAlchemy, whose import costs more than most queries."""
    path = layout.ledger_url.removeprefix("sqlite:///")
    return path == layout.ledger_url or Path(path).is_file()


def _charges(connection: Any) -> Iterator[dict[str, Any]]:
    import sqlalchemy as sa

    from storage.ledger.money import from_nano
    from storage.ledger.schema import charges

    for row in connection.execution_options(yield_per=_BATCH).execute(sa.select(charges).order_by(charges.c.id)):
        yield {**row._mapping, "amount_usd": from_nano(row.amount_nano)}


def _models(connection: Any) -> Iterator[dict[str, Any]]:
    import sqlalchemy as sa

    from storage.ledger.schema import datasets, deployments, models

    names: dict[str, list[str]] = defaultdict(list)
    for row in connection.execute(sa.select(deployments.c.model_id, deployments.c.served_name)):
        if row.served_name is not None:
            names[row.model_id].append(row.served_name)
    query = sa.select(models, datasets.c.dataset).outerjoin(datasets, datasets.c.id == models.c.dataset_id)
    for row in connection.execute(query.order_by(models.c.created_at, models.c.id)):
        yield {**row._mapping, "model_id": row.id, "served_names": sorted(names[row.id])}
