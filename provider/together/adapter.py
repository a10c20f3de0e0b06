"""Together behind `provider.port`: what is asked of it goes through the SDK, and comes back as plain data.

The emulator speaks the same wire, so the provider `local` of the settings is this adapter with another address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from provider.money.billed import Bill, Objects
from provider.port import (
    CONCURRENCY,
    BaseModel,
    BeforeCreate,
    CompletionResult,
    Messages,
    Provider,
    RemoteAdapter,
    RemoteDeployment,
    RemoteEndpoint,
    RemoteFile,
    RemoteJob,
    Sampling,
    ServingOption,
    ServingRequest,
    TrainingRequest,
)
from provider.rows import CheckedFile
from provider.together import adapters, completions, endpoints, files, jobs, serving_configs, tiers, usage
from provider.together.capabilities import CAPABILITIES
from provider.together.client import connect
from provider.together.clock import ask_time
from provider.together.prices import hourly_prices
from reasoning.config import is_loopback
from storage.progress import OnProgress

if TYPE_CHECKING:
    from together import Together

NAME = "together"


def open_together(name: str | None = None, *, timeout: float = 60.0) -> TogetherProvider:
    """A connection to Together, or to the emulator (`local`). Raises what `client.connect` does."""
    return TogetherProvider(connect(provider=name, timeout=timeout))


class TogetherProvider(Provider):
    """A connection to Together through the SDK's `client`."""

    def __init__(self, client: Together) -> None:
        self.client = client
        self.name = NAME
        self.capabilities = CAPABILITIES
        self.training_parameters: Mapping[str, Any] = jobs.PARAMETERS
        # The emulator takes seconds for what Together takes minutes for.
        self.poll_seconds = 0.25 if is_loopback(urlsplit(str(client.base_url)).hostname or "") else 5.0

    def close(self) -> None:
        """Close the connection."""
        self.client.close()

    def with_timeout(self, seconds: float, *, retries: bool = True) -> TogetherProvider:
        """The same connection with less patience, and without the SDK's retries."""
        own = self.client.timeout
        patience = min(seconds, own) if isinstance(own, int | float) else seconds
        options: dict[str, Any] = {} if retries else {"max_retries": 0}
        return TogetherProvider(self.client.with_options(timeout=patience, **options))

    def time(self) -> datetime | None:
        """What time it is by the provider's clock."""
        return ask_time(self.client)

    def hourly_prices(self) -> Mapping[str, Decimal]:
        """US dollars an hour by the name, the id and `<count>x<gpu type>` of each instance type that has a price."""
        return hourly_prices(self.client)

    def base_model(self, tier: str, *, lora: bool = True) -> BaseModel:
        """The first usable candidate of a tier."""
        return tiers.resolve_tier(self.client, tier, lora=lora)

    def serving_options(self, model_object_id: str, base_model: str) -> list[ServingOption]:
        """The certified configs for a trained model, the fittest first."""
        found = serving_configs.configs_of_trained(self.client, model_object_id, base_model)
        ranked = sorted(found, key=lambda config: config.unfitness)
        shares = any(each.adapters != 0 for each in ranked)
        base = serving_configs.base_path(self.client, model_object_id) if shares else None
        return [
            ServingOption(each.config, each.hardware, each.hourly_usd, base, each.adapters if base else 0)
            for each in ranked
        ]

    def upload(self, name: str, file: CheckedFile) -> str:
        """Upload a file under our name."""
        return files.upload_file(self.client, name, file)

    def file(self, file_id: str) -> RemoteFile:
        """How an uploaded file is."""
        return files.retrieve_file(self.client, file_id)

    def training_price(self, request: TrainingRequest) -> Decimal:
        """What Together estimates, and at least its minimum."""
        return jobs.training_price(self.client, request)

    def train(self, request: TrainingRequest, *, before_create: BeforeCreate) -> RemoteJob:
        """Submit a fine-tune, once for its suffix."""
        return jobs.submit_job(self.client, request, before_create)

    def jobs(self) -> list[RemoteJob]:
        """All fine-tunes of the account."""
        return jobs.list_jobs(self.client)

    def find_job(self, name: str) -> RemoteJob | None:
        """The fine-tune of that suffix."""
        return jobs.find_job(self.client, name)

    def job(self, job_id: str) -> RemoteJob:
        """How a fine-tune is."""
        return jobs.retrieve_job(self.client, job_id)

    def job_progress(self, job_id: str) -> tuple[float, str | None]:
        """How far a fine-tune is, by its events."""
        return jobs.job_progress(self.client, job_id)

    def cancel_job(self, job_id: str) -> None:
        """Cancel a fine-tune."""
        jobs.cancel_job(self.client, job_id)

    def endpoints(self) -> list[RemoteEndpoint]:
        """All endpoints of the project."""
        return endpoints.list_endpoints(self.client)

    def find_endpoint(self, name: str) -> RemoteEndpoint | None:
        """The endpoint of that bare name."""
        return endpoints.find_endpoint(self.client, name)

    def create_endpoint(self, name: str) -> RemoteEndpoint:
        """The endpoint of that name, created where it is not there."""
        return endpoints.create_endpoint(self.client, name)

    def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint."""
        endpoints.delete_endpoint(self.client, endpoint_id)

    def deployments(self, endpoint_id: str) -> list[RemoteDeployment]:
        """All that is under an endpoint."""
        return endpoints.list_deployments(self.client, endpoint_id)

    def find_deployment(self, endpoint_id: str, name: str) -> RemoteDeployment | None:
        """The deployment of that bare name under an endpoint."""
        return endpoints.find_deployment(self.client, endpoint_id, name)

    def deployment(self, endpoint_id: str, deployment_id: str) -> RemoteDeployment:
        """How a deployment is."""
        return endpoints.retrieve_deployment(self.client, endpoint_id, deployment_id)

    def create_deployment(self, request: ServingRequest, *, before_create: BeforeCreate) -> RemoteDeployment:
        """The deployment of that name, created where it is not there."""
        return endpoints.create_deployment(self.client, request, before_create)

    def scale(self, endpoint_id: str, deployment_id: str, replicas: int) -> RemoteDeployment:
        """Tell a deployment how many replicas to have, whatever its version."""
        return endpoints.scale(self.client, endpoint_id, deployment_id, replicas)

    def delete_deployment(self, endpoint_id: str, deployment: RemoteDeployment) -> None:
        """Delete a deployment by the version that was read."""
        endpoints.delete_deployment(self.client, endpoint_id, deployment)

    def give_traffic(self, endpoint_id: str, deployment_id: str) -> None:
        """Have an endpoint send all its requests to one deployment."""
        endpoints.give_traffic(self.client, endpoint_id, deployment_id)

    def withdraw_traffic(self, endpoint_id: str) -> None:
        """Have an endpoint send its requests nowhere."""
        endpoints.withdraw_traffic(self.client, endpoint_id)

    def wrong_model(self, deployment: RemoteDeployment, model_object_id: str) -> str | None:
        """Why what a deployment serves is not this model, or None."""
        return endpoints.wrong_model(self.client, deployment, model_object_id)

    def attach(
        self, endpoint_id: str, deployment_id: str, adapter_id: str, *, before_create: BeforeCreate
    ) -> RemoteAdapter:
        """Attach an adapter to a deployment, once."""
        return adapters.attach_adapter(self.client, endpoint_id, deployment_id, adapter_id, before_create)

    def attached(self, endpoint_id: str, deployment_id: str) -> list[RemoteAdapter]:
        """The adapters of a deployment."""
        return adapters.list_adapters(self.client, endpoint_id, deployment_id)

    def detach(self, endpoint_id: str, deployment_id: str, adapter: RemoteAdapter) -> None:
        """Detach an adapter, whatever its version."""
        adapters.detach_adapter(self.client, endpoint_id, deployment_id, adapter)

    def read_bill(self, objects: Objects, *, since: datetime, now: datetime, errors: list[str]) -> Bill:
        """The bill of the organisation, by our objects."""
        return usage.read_bill(self.client, objects, since=since, now=now, errors=errors)

    def ask(
        self,
        model: str,
        conversations: Iterable[Messages],
        sampling: Sampling,
        *,
        concurrency: int = CONCURRENCY,
        progress: OnProgress | None = None,
    ) -> list[CompletionResult]:
        """Ask a served model every conversation."""
        return completions.ask_all(self.client, model, conversations, sampling, concurrency, progress)
