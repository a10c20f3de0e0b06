"""A real emulator process, asked through the real SDK, and an installation whose time is moved by hand."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from provider.lifecycle.deployments import deploy_model
from provider.lifecycle.fine_tunes import follow_fine_tune, submit_fine_tune
from provider.lifecycle.uploads import upload_dataset
from provider.pace import Pace
from provider.together.adapter import TogetherProvider
from provider.together.client import connect
from quality.dataset.funnel import Leaks
from quality.dataset.manifest import Manifest, SplitSummary
from storage.layout import Layout
from storage.ledger.ledger import Ledger, open_ledger
from storage.ledger.rows import Deployment, FineTuneJob, Model, UploadedDataset, required


@contextmanager
def run_emulator(data: Path, *options: str) -> Iterator[str]:
    """URL of an emulator process that trains fast (the most frequent answer)."""
    command = [sys.executable, "-m", "emulator", "--data", str(data), "--port", "0", "--trainer", "majority", *options]
    process = subprocess.Popen(
        [*command, "--clock", datetime.now(UTC).isoformat()],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        yield next(word for word in line.split() if word.startswith("http"))
    finally:
        process.terminate()
        process.wait()


class Emulator:
    """The process and its admin routes. Its clock stands still until it is moved.

    `now` asks once for each move of the clock by this object: `forget_time` after another process may have moved it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._now: datetime | None = None
        self._moving = threading.Lock()
        # A connection a request: one that was kept may be closed at the moment it is used, and tests do not retry. All
        # patience: where others take the whole machine, the emulator of a long run may wait minutes for its turn.
        self.http = httpx.Client(
            base_url=f"{url}/emulator", timeout=900, verify=False, limits=httpx.Limits(max_keepalive_connections=0)
        )
        self.http.post("/clock", json={"frozen": True}).raise_for_status()

    def now(self) -> datetime:
        with self._moving:
            if self._now is None:
                self._now = datetime.fromisoformat(self.http.get("/clock").json()["now"])
            return self._now

    def forget_time(self) -> None:
        self._now = None

    def advance(self, seconds: float) -> None:
        with self._moving:
            self.http.post("/clock", json={"advance_seconds": seconds}).raise_for_status()
            self.forget_time()

    def fault(self, kind: str | int, match: str | None = None, times: int = 1, **options: Any) -> None:
        order = {"kind": str(kind), "times": times, **options} | ({"match": match} if match else {})
        self.http.post("/faults", json=[order]).raise_for_status()

    def forms(self, **forms: str) -> None:
        """Answer in these documented forms from now on (`emulator.world.forms`)."""
        self.http.post("/forms", json=forms).raise_for_status()

    def clear_forms(self) -> None:
        self.http.delete("/forms").raise_for_status()

    def clear_faults(self) -> None:
        self.http.delete("/faults").raise_for_status()

    def bill_form(self, **form: Any) -> None:
        """How the billing API answers: `attributes` (see `emulator.billing.bill`), and `api`, whether it is there."""
        self.http.post("/bill", json=form).raise_for_status()

    def pending_faults(self) -> int:
        """How often what was ordered has still to strike."""
        return sum(order["times"] for order in self.http.get("/faults").json()["faults"])

    def bill_items(self) -> list[dict[str, Any]]:
        return list(self.http.get("/bill").json()["items"])

    def bill(self, ids: set[str]) -> Decimal:
        """US dollars for these remote objects."""
        items = self.bill_items()
        return sum((Decimal(item["amount_usd"]) for item in items if item["resource_id"] in ids), Decimal(0))


class Killed(BaseException):
    """Stands for SIGKILL: nothing but the death of the process follows it, so no code of ours catches it."""


class World:
    """One installation: its data folder, ledger, SDK client, and the time, which passes only when it waits."""

    def __init__(self, emulator: Emulator, data: Path) -> None:
        self.emulator, self.data = emulator, Layout(data).create().data
        self.trained_object = ""
        self.client = connect(base_url=emulator.url)
        # Looks at the provider for the tests: it does not die with the client, and outlasts the faults.
        self.observer = connect(base_url=emulator.url).with_options(max_retries=100, timeout=1)
        self.ledger: Ledger = open_ledger(data)
        for period, limit in (("hour", None), ("day", None), ("month", None), ("total", "1000")):
            self.ledger.set_budget(period, limit)  # type: ignore[arg-type]

    @property
    def provider(self) -> TogetherProvider:
        """The provider behind the port, through the SDK client of now."""
        return TogetherProvider(self.client)

    @property
    def pace(self) -> Pace:
        """By the emulator's clock, which passes while somebody waits."""
        return Pace(poll_seconds=1, now=self.now, wait=self.wait)

    def kill_after(self, method: str, path: str) -> None:
        """Die when the provider has done such a request and its answer is on the way."""

        def hook(response: httpx.Response) -> None:
            if response.request.method == method and response.request.url.path.endswith(path):
                raise Killed

        self.client._client.event_hooks = {"response": [hook]}

    def revive(self) -> None:
        self.client._client.event_hooks = {}

    def now(self) -> datetime:
        return self.emulator.now()

    def wait(self, seconds: float) -> None:
        self.emulator.advance(seconds)
        time.sleep(0.01)  # training is real, and takes real time

    def minutes(self, minutes: float) -> None:
        self.emulator.advance(minutes * 60)

    def write_dataset(self, name: str = "dataset-1", rows: int = 40, decision_type: str = "should_respond") -> Path:
        folder = self.data / "datasets" / decision_type / name
        folder.mkdir(parents=True)
        splits = {}
        for split, count in (("train", rows), ("validation", 10)):
            lines = [json.dumps({"messages": conversation(f"{self.data} {name} {split} {i}")}) for i in range(count)]
            content = ("\n".join(lines) + "\n").encode()
            (folder / f"{split}.jsonl").write_bytes(content)
            splits[split] = SplitSummary(count, count, None, None, {}, hashlib.sha256(content).hexdigest())
        (folder / "holdout.jsonl").touch()
        pq.write_table(pa.table({"split": pa.array([], pa.string())}), folder / "rows.parquet")
        manifest = Manifest(
            decision_type,
            query={},
            config_hash="",
            selected=rows + 10,
            dropped={},
            faults={},
            redactions={},
            label_sources={},
            splits=splits,
            validation_from="",
            holdout_from="",
            leaks=Leaks(0, 0, 0, 0, 0.0),
            rows_sha256=hashlib.sha256((folder / "rows.parquet").read_bytes()).hexdigest(),
            quality={},
        )
        (folder / "manifest.json").write_text(json.dumps(manifest.as_dict()))
        return folder

    def upload(self, name: str = "dataset-1", decision_type: str = "should_respond") -> UploadedDataset:
        folder = self.write_dataset(name, decision_type=decision_type)
        return upload_dataset(self.provider, self.ledger, folder, pace=self.pace)

    def train(self, name: str = "dataset-1", decision_type: str = "should_respond") -> FineTuneJob:
        """A completed job."""
        dataset = self.upload(name, decision_type)
        job = submit_fine_tune(self.provider, self.ledger, dataset.id, tier="small", pace=self.pace)
        return follow_fine_tune(self.provider, self.ledger, job.id, pace=self.pace)

    def model(self, decision_type: str = "should_respond") -> str:
        """A model's id, without a training of its own: what serves it was trained once for all tests."""
        row = self.ledger.add(
            Model,
            state="trained",
            decision_type=decision_type,
            base_model="Qwen/Qwen3.5-2B",
            model_object_id=self.trained_object,
            now=self.now(),
        )
        return str(row.id)

    def deploy(self, model_id: str | None = None) -> Deployment:
        """A ready deployment."""
        model_id = model_id or self.model()
        return deploy_model(self.provider, self.ledger, model_id, pace=self.pace)

    def all_endpoints(self) -> list[Any]:
        return list(self.observer.endpoints.list())

    def all_jobs(self) -> list[Any]:
        return list(self.observer.fine_tuning.list().data or [])

    def ours(self, endpoints: list[Any] | None = None) -> list[Any]:
        """Our endpoints at the provider."""
        found = self.all_endpoints() if endpoints is None else endpoints
        return [e for e in found if e.name.rsplit("/", 1)[-1].startswith(self.ledger.prefix)]

    def our_jobs(self, jobs: list[Any] | None = None) -> list[Any]:
        found = self.all_jobs() if jobs is None else jobs
        return [job for job in found if (job.suffix or "").startswith(self.ledger.prefix)]

    def close(self) -> None:
        self.ledger.close()
        self.client.close()
        self.observer.close()

    def double(self, row: Deployment) -> Any:
        """A second deployment at the endpoint of `row`, as a create whose answer was lost leaves it."""
        return self.client.endpoints.deployments.create(
            endpoint_id=required(row.endpoint_id, row.name),
            name="double",
            model=f"projects/{self.client.project_id}/models/{row.model_object_id}",
            config=row.config,
            autoscaling={"min_replicas": 1, "max_replicas": 1},
        )

    def next_hours(self, hours: int) -> None:
        self.emulator.advance(timedelta(hours=hours).total_seconds())

    def until_minute(self, minute: int) -> None:
        """To that minute of an hour, for what depends on where an hour ends."""
        now = self.now()
        self.emulator.advance((minute * 60 - now.minute * 60 - now.second - now.microsecond / 1e6) % 3600)

    def until_month_ends(self, *, minutes: float) -> None:
        """To so many minutes before the next month."""
        now = self.now()
        first = (now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=32)).replace(day=1)
        self.emulator.advance((first - now).total_seconds() - minutes * 60)

    def by_daylight(self) -> World:
        """At twenty past an hour, well before midnight: what a test does in minutes is in one hour and one day."""
        self.until_minute(20)
        if self.now().hour == 23:
            self.next_hours(1)
        return self

    def await_bill(self) -> None:
        """Until the bill has had its time for all that ended, at whatever minute of an hour that was."""
        self.next_hours(26)


def conversation(text: str, answer: str = "<response><action>RESPOND</action></response>") -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "Decide."},
        {"role": "user", "content": text},
        {"role": "assistant", "content": answer},
    ]
