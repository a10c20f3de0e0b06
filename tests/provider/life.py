"""A life of commands, faults and deaths of one installation at a provider, with what must hold at every moment.

Shared by the property test (hypothesis chooses what happens) and by `benchmarks/money.py` (a seeded generator does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from provider.lifecycle.deployments import deploy_model
from provider.lifecycle.fine_tunes import cancel_fine_tune, follow_fine_tune, submit_fine_tune
from provider.lifecycle.guard import guard_costs
from provider.lifecycle.reconcile import reconcile_provider
from provider.lifecycle.routes import LEASE, publish_route, routed_models
from provider.lifecycle.shutdown import undeploy_model
from provider.pace import Pace
from provider.together.client import connect
from provider.together.tiers import resolve_tier
from reasoning.errors import ReasoningError
from reasoning.serving.routes import Arm, Route, read_routes
from storage.ledger.reports import ACTIVE_STATES, BILLABLE_STATES
from storage.ledger.rows import Deployment, DeploymentRole, FineTuneJob, Model, UploadedDataset, required
from tests.provider.world import Killed, World

CREATES = (("train", "/v1/fine-tunes"), ("deploy", "/endpoints"), ("deploy", "/deployments"), ("deploy", "/adapters"))
"""Commands, and where the POSTs that create something end."""

FAULTS: tuple[tuple[str, str | None], ...] = (
    *(
        (kind, match)
        for kind in ("lost_response", "409", "429", "500", "503")
        for match in ("POST *", "P* /v2/*", "GET *")
    ),
    ("lost_response", "DELETE *"),
    ("503", "DELETE *"),
    ("hang", "POST *"),
    ("hang", "GET *"),
    ("slow_cold_start", None),
    ("no_capacity", None),
    ("training_error", None),
)


@dataclass
class Life:
    """One installation with a guard that ticks whenever a minute passes, unless it is dead."""

    world: World
    limit: Decimal
    guard_alive: bool = True
    kills: int = 0
    ticks: int = 0
    worst_overshoot: Decimal = Decimal(0)
    worst_orphan_reconciliations: int = 0
    oldest_orphan: timedelta = timedelta(0)
    charged: Decimal = Decimal(0)
    billed: Decimal = Decimal(0)
    _last_guarded: datetime | None = None
    _leased_at: datetime | None = None
    _troubled: bool = False
    _allowed: Decimal = Decimal(0)
    _ran_before: Decimal = Decimal(0)
    _overshoot_before: Decimal = Decimal(0)
    _ordered: int = 0
    _cleared: int = 0
    _orphans: dict[str, int] = field(default_factory=dict)
    _datasets: int = 0

    def __post_init__(self) -> None:
        world = self.world
        for period in ("hour", "day", "month"):
            world.ledger.set_budget(period, None)
        world.ledger.set_budget("total", self.limit)
        self._strangers = Strangers(world)

    # -- what may happen ----------------------------------------------------------------------------------------

    def upload(self) -> None:
        self._datasets += 1
        self._attempt(lambda: self.world.upload(f"dataset-{self._datasets}"))

    def train(self) -> None:
        """Submit and follow a fine-tune of the newest dataset that is there."""

        def run() -> None:
            dataset = self.world.ledger.find(UploadedDataset, state="ready")[-1]
            job = submit_fine_tune(
                self.world.provider,
                self.world.ledger,
                dataset.id,
                tier="small",
                pace=Pace(now=self.world.now, wait=self.wait),
            )
            self._follow(job.id)

        if self.world.ledger.find(UploadedDataset, state="ready"):
            self._attempt(run)

    def _follow(self, job_id: str) -> None:
        follow_fine_tune(
            self.world.provider,
            self.world.ledger,
            job_id,
            pace=Pace(poll_seconds=1, now=self.world.now, wait=self.wait),
        )

    def cancel(self) -> None:
        jobs = self.world.ledger.find(FineTuneJob, state=ACTIVE_STATES)
        if jobs:
            self._attempt(
                lambda: cancel_fine_tune(self.world.provider, self.world.ledger, jobs[-1].id, now=self.world.now())
            )

    def deploy(self, newest: int = 1) -> None:
        """Deploy the newest model (or with 2 the one before it) and give it traffic."""

        def run() -> None:
            row = deploy_model(
                self.world.provider,
                self.world.ledger,
                models[-min(newest, len(models))].id,
                pace=Pace(poll_seconds=60, now=self.world.now, wait=self.wait),
            )
            custom = Arm("custom", "custom", 1.0, model=row.served_name, base_url=self.world.emulator.url)
            self._leased_at = self.world.now()
            publish_route(self.world.data / "routes.json", "should_respond", Route((custom,)), now=self._leased_at)

        if models := self.world.ledger.find(Model):
            self._attempt(run)

    def undeploy(self) -> None:
        rows = self.world.ledger.find(Deployment, state=BILLABLE_STATES)
        if rows:
            self._attempt(
                lambda: undeploy_model(
                    self.world.provider,
                    self.world.ledger,
                    rows[-1].id,
                    routes_path=self.world.data / "routes.json",
                    pace=Pace(now=self.world.now, wait=self.wait),
                )
            )

    def stopped_by_the_provider(self) -> None:
        """It ends a deployment by itself, as its own idle stop does."""
        roles = (DeploymentRole.OWN, DeploymentRole.SHARED)
        for row in self.world.ledger.find(Deployment, state="ready", role=roles)[-1:]:
            self.world.observer.endpoints.deployments.update(
                required(row.remote_id, ""),
                endpoint_id=required(row.endpoint_id, ""),
                autoscaling={"min_replicas": 0, "max_replicas": 0},
            )

    def use(self) -> None:
        """Agents ask what has a route."""
        for row in self.world.ledger.find(Deployment, state="ready"):
            if row.served_name in routed_models(self.world.data / "routes.json", now=self.world.now()):
                self.world.ledger.update(Deployment, row.id, last_request_at=self.world.now())

    def fault(self, kind: str, match: str | None, times: int = 1) -> None:
        options = {"seconds": 900} if kind in ("slow_cold_start", "no_capacity") else {}
        self.world.emulator.fault(kind, match, times=times, **options)
        self._ordered += times

    @property
    def faults(self) -> int:
        """How many have struck."""
        return self._ordered - self._cleared - self.world.emulator.pending_faults()

    def kill(self, command: Callable[[], None], *, request: int, answered: bool) -> None:
        """Die in a command at its so-many-th request: before it leaves, or when it was carried out."""
        left = request

        def hook(_: Any) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                self.kills += 1
                self.world.revive()
                raise Killed

        self.world.client._client.event_hooks = {"response" if answered else "request": [hook]}
        try:
            command()
        finally:
            self.world.revive()

    def die_creating(self, command: Callable[[], None], path: str) -> None:
        """Die in a command when the provider has carried out the POST to `path` and its answer is on the way."""
        self.world.kill_after("POST", path)
        command()
        self.world.revive()
        self.kills += 1

    def reconcile_twice(self) -> None:
        """As the schedule does, with nobody at work in between."""
        for _ in range(2):
            self.wait(600)
            self.reconcile()

    def wait(self, seconds: float) -> None:
        """Let time pass, with a tick of the guard every minute of it."""
        left = seconds
        while left > 0:
            step = min(left, 60.0)
            self.world.wait(step)
            left -= step
            if self._last_guarded is None or (self.world.now() - self._last_guarded).total_seconds() >= 60:
                self.guard()

    def busy(self) -> bool:
        """May anything of ours cost something: by the ledger, or at the provider?"""
        return bool(
            self.world.ledger.find(Deployment, state=("intended", *BILLABLE_STATES))
            or self.world.ledger.find(FineTuneJob, state=ACTIVE_STATES)
            or self.world.ours()
        )

    def raise_limit(self, limit: Decimal) -> None:
        """Set the budget anew, not below what is spent and promised: that is owed."""
        (budget,) = self.world.ledger.budgets(self.world.now())
        self.limit = max(limit, budget.spent_usd + budget.reserved_usd)
        self._overshoot_before = Decimal(0)
        self.world.ledger.set_budget("total", self.limit)

    def guard(self) -> None:
        if not self.guard_alive:
            return
        now = self._last_guarded = self.world.now()
        self.ticks += 1
        lease = self._lease()
        report = guard_costs(self.world.data, self.world.provider, ledger=self.world.ledger, now=now)
        if report.skipped or report.errors:
            assert self._lease() == lease, f"the lease was renewed in spite of {report.errors}"
            self._troubled = True
            return
        self._leased_at = now
        ready = {row.served_name for row in self.world.ledger.find(Deployment, state="ready")}
        routed = set(routed_models(self.world.data / "routes.json", now=now))
        assert routed <= (set() if report.level in ("drain", "stop") else ready), f"{routed} has traffic at {report}"
        # What ran since the last tick that could meter could not be stopped earlier. A started minute is a minute.
        ran = sum((Decimal(item["amount_usd"]) for item in self._bill("deployment")), Decimal(0))
        rows = self.world.ledger.find(Deployment, state=("intended", *BILLABLE_STATES, "stopped"))
        started = sum((row.hourly_usd / 60 for row in rows), Decimal(0))
        interval, self._ran_before = ran - self._ran_before + started, ran
        overshoot = self.world.ledger.spent() - self.limit
        self.worst_overshoot = max(self.worst_overshoot, overshoot)
        # Once over the budget nothing may run on, but for what trouble kept from being stopped, and the last minutes.
        if self._overshoot_before == 0:
            self._allowed = interval + started
        elif self._troubled:
            self._allowed += interval
        self._troubled = False
        # What is charged at worst until the bill has had its day is money that nobody has spent.
        at_worst = max(self.world.ledger.spent() - self.world.emulator.bill(self.remote_ids()), Decimal(0))
        assert overshoot <= self._allowed + at_worst, (
            f"{overshoot} over the budget, {self._allowed} could not be stopped, {at_worst} charged at worst"
        )
        self._overshoot_before = max(overshoot, Decimal(0))

    def _lease(self) -> datetime | None:
        """Until when the routes are good."""
        path = self.world.data / "routes.json"
        return read_routes(path).expires_at if path.exists() else None

    def guard_dying(self) -> None:
        """A tick that may be killed."""
        self._attempt(self.guard)

    def _bill(self, *kinds: str) -> list[dict[str, Any]]:
        """The lines of the provider's own bill that are ours, by our name in them."""
        items = self.world.emulator.bill_items()
        return [item for item in items if item["kind"] in kinds and self.world.ledger.prefix in item["what"]]

    def reconcile(self) -> None:
        def run() -> None:
            report = reconcile_provider(
                self.world.data, self.world.provider, ledger=self.world.ledger, now=self.world.now()
            )
            if not report.errors and not report.skipped:
                self._count_orphans()

        self._attempt(run)

    def _attempt(self, command: Callable[[], object]) -> None:
        """A command may be refused, or die; what it leaves is what is tested."""
        try:
            command()
        except (ReasoningError, Killed):
            pass
        finally:
            self.world.revive()

    def _differences(self) -> str:
        """Every object whose charges are not what the provider billed for it, with both sides."""
        world, lines = self.world, []
        owned: list[tuple[str, Deployment | FineTuneJob]] = [
            *(("deployment_id", row) for row in world.ledger.find(Deployment)),
            *(("job_id", row) for row in world.ledger.find(FineTuneJob)),
        ]
        for column, row in owned:
            table = row.TABLE
            charges = world.ledger.charges(**{column: row.id})
            items = [item for item in self._bill("deployment", "fine_tune") if item["resource_id"] == row.remote_id]
            charged = sum((charge.amount_usd for charge in charges), Decimal(0))
            billed = sum((Decimal(item["amount_usd"]) for item in items), Decimal(0))
            if charged != billed:
                lines.append(f"{table} {row.id} ({row.remote_id}): charged {charged}, billed {billed}")
                lines += [f"  {step.ts} {step.to_state}: {step.why}" for step in world.ledger.history(table, row.id)]
                lines += [f"  charge {c.ts} {c.amount_usd} {c.what} (recorded {c.recorded_at})" for c in charges]
                lines += [f"  bill {item['start']} to {item['end']}: {item['amount_usd']}" for item in items]
                lines.append(f"  {row}")
        return "\n".join(lines)

    # -- what must hold -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Nothing twice, nothing of a stranger's touched."""
        jobs, endpoints = self.world.all_jobs(), self.world.all_endpoints()
        suffixes = [job.suffix for job in self.world.our_jobs(jobs)]
        assert len(suffixes) == len(set(suffixes)), f"a job twice: {suffixes}"
        live_models = []
        for endpoint in self.world.ours(endpoints):
            running = [d for d in endpoint.deployments if (d.autoscaling.max_replicas or 0) > 0]
            assert len(running) <= 1, f"{endpoint.name} has {len(running)} deployments"
            live_models += [d.model for d in running]
        assert len(live_models) == len(set(live_models)), f"a model is deployed twice: {live_models}"
        attached = [adapter for adapters in self._adapters(endpoints).values() for adapter in adapters]
        assert len(attached) == len(set(attached)), f"an adapter is attached twice: {attached}"
        self._strangers.check(endpoints, jobs)
        if self._leased_at is None or self.world.now() - self._leased_at >= LEASE:
            routed = routed_models(self.world.data / "routes.json", now=self.world.now())
            assert not routed, f"{routed} has traffic without a guard"
        self._find_orphans(endpoints, jobs)

    def _find_orphans(self, endpoints: list[Any], jobs: list[Any]) -> set[str]:
        """What of ours is at the provider and nobody watches: deployments that run, jobs in any state."""
        watched = {row.name for row in self.world.ledger.find(Deployment, state=(*BILLABLE_STATES, "stopped"))}
        followed = {job.remote_id for job in self.world.ledger.find(FineTuneJob)}
        since = {
            deployment.id: deployment.created_at
            for endpoint in self.world.ours(endpoints)
            if endpoint.name.rsplit("/", 1)[-1] not in watched
            for deployment in endpoint.deployments
            if (deployment.autoscaling.max_replicas or 0) > 0
        } | {job.id: job.created_at for job in self.world.our_jobs(jobs) if job.id not in followed}
        now = self.world.now()
        self.oldest_orphan = max([self.oldest_orphan, *(now - begun for begun in since.values())])
        return set(since)

    def _adapters(self, endpoints: list[Any]) -> dict[str, list[str]]:
        """What our shared replicas carry, by the id of the replica, which runs."""
        shared = {row.name for row in self.world.ledger.find(Deployment, role=DeploymentRole.SHARED)}
        return {
            replica.id: [
                adapter.adapter_model_id
                for adapter in self.world.observer.endpoints.adapters.list(endpoint.id, replica.id)
            ]
            for endpoint in self.world.ours(endpoints)
            if endpoint.name.rsplit("/", 1)[-1] in shared
            for replica in endpoint.deployments
            if (replica.autoscaling.max_replicas or 0) > 0
        }

    def _count_orphans(self) -> None:
        """After a reconciliation that met no trouble. A replica that carries nothing is one, too."""
        endpoints = self.world.all_endpoints()
        orphans = self._find_orphans(endpoints, self.world.all_jobs())
        orphans |= {replica for replica, adapters in self._adapters(endpoints).items() if not adapters}
        self._orphans = {orphan: self._orphans.get(orphan, 0) + 1 for orphan in orphans}
        self.worst_orphan_reconciliations = max([self.worst_orphan_reconciliations, *self._orphans.values()])
        assert self.worst_orphan_reconciliations < 2, f"orphans after two reconciliations: {self._orphans}"

    def end(self) -> None:
        """All faults over, everything down: the charges are the bill, to the cent."""
        world = self.world
        world.revive()
        world.client.close()
        world.client = connect(base_url=world.emulator.url)  # with all patience: what is left is arithmetic
        self._cleared += world.emulator.pending_faults()
        world.emulator.clear_faults()
        self.guard_alive = True
        for job in world.ledger.find(FineTuneJob, state=ACTIVE_STATES):
            self._attempt(lambda job=job: cancel_fine_tune(world.provider, world.ledger, job.id, now=world.now()))  # type: ignore[misc]
            if world.ledger.get(FineTuneJob, job.id).state in ACTIVE_STATES:
                self._attempt(lambda job=job: self._follow(job.id))  # type: ignore[misc]
        for _ in range(3):
            for row in world.ledger.find(Deployment, state=("intended", *BILLABLE_STATES)):
                self._attempt(
                    lambda row=row: undeploy_model(  # type: ignore[misc]
                        world.provider, world.ledger, row.id, pace=Pace(now=world.now, wait=self.wait)
                    )
                )
            world.await_bill()
            self.guard()
            self.reconcile()
        assert world.ours() == []
        assert world.ledger.find(Deployment, state=("intended", *BILLABLE_STATES)) == []
        (budget,) = world.ledger.budgets(world.now())
        assert budget.reserved_usd == 0, "money is still reserved"
        self.charged, self.billed = world.ledger.spent(), world.emulator.bill(self.remote_ids())
        for kind, column in (("deployments", "deployment_id"), ("fine_tune_jobs", "job_id")):
            self._check_charges(kind, column)
        # Nothing of ours is on the bill that the ledger does not know.
        assert {item["resource_id"] for item in self._bill("deployment", "fine_tune")} <= self.remote_ids()
        self.check()

    def _check_charges(self, kind: str, column: str) -> None:
        """To the cent where the bill names objects of this kind; else charged at worst, and nothing given back."""
        world = self.world
        charges = [charge for charge in world.ledger.charges() if getattr(charge, column)]
        charged = sum((charge.amount_usd for charge in charges), Decimal(0))
        rows: list[Deployment] | list[FineTuneJob] = (
            world.ledger.find(Deployment) if kind == "deployments" else world.ledger.find(FineTuneJob)
        )
        billed = world.emulator.bill({row.remote_id for row in rows if row.remote_id})
        said = f"{kind}: charged {charged}, billed {billed}\n{self._differences()}"
        if any(step.to_state == "named" for step in world.ledger.history("billing", kind)):
            assert abs(charged - billed) < Decimal("0.01"), said
            return
        assert charged >= billed, said
        assert not [charge for charge in charges if charge.amount_usd < 0], said

    def remote_ids(self) -> set[str]:
        """Of everything that the ledger knows at the provider."""
        rows: list[Deployment | FineTuneJob] = [
            *self.world.ledger.find(Deployment),
            *self.world.ledger.find(FineTuneJob),
        ]
        return {row.remote_id for row in rows if row.remote_id}


class Strangers:
    """What another installation has at the same provider, its name as like ours as can be: nobody may touch it."""

    def __init__(self, world: World) -> None:
        name, client = f"rsn-{world.ledger.installation_id}0-stranger", world.observer
        endpoint = client.endpoints.create(name=name)
        base = resolve_tier(client, "small")
        client.endpoints.deployments.create(
            endpoint_id=endpoint.id,
            name=name,
            model=f"projects/{client.project_id}/models/{world.trained_object}",
            config=base.config,
            autoscaling={"min_replicas": 1, "max_replicas": 1},
        )
        self._name = name
        file = client.files.upload(world.write_dataset(f"strangers-{world.data.name}") / "train.jsonl", check=False)
        while client.files.retrieve(file.id).processing_status != "COMPLETED":
            world.wait(1)
        self._job = client.fine_tuning.create(training_file=file.id, model=base.name, suffix=name, lora=True).id
        while client.fine_tuning.retrieve(self._job).status != "completed":
            world.wait(1)
        self._before = self._look(world.all_endpoints(), world.all_jobs())

    def _look(self, endpoints: list[Any], jobs: list[Any]) -> object:
        (endpoint,) = (e for e in endpoints if e.name.endswith(self._name))
        deployments = [(d.id, d.desired_replicas, d.autoscaling) for d in endpoint.deployments]
        return endpoint.etag, deployments, [(job.id, job.status) for job in jobs if job.id == self._job]

    def check(self, endpoints: list[Any], jobs: list[Any]) -> None:
        found = self._look(endpoints, jobs)
        assert found == self._before, f"a stranger's objects were touched: {self._before} became {found}"
