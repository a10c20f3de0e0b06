"""LoRA adapters on a deployment of their base model (SDK 3.1.1, `client.endpoints.adapters`; beta).

An adapter is attached once: a create whose answer was lost is looked for by the adapter's model. It is never forced in,
which would evict the oldest. How many a deployment carries, its config may tell (a selector `max_adapters`); else only
the refusal of one too many does, whose status is not documented.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from provider.errors import NoRoom, ProviderError, ProviderRefused, ProviderUnavailable, UnexpectedAnswer, brief
from provider.port import BeforeCreate, RemoteAdapter
from provider.together.answers import count, listed, text
from provider.together.client import create_once, translate_sdk_errors

if TYPE_CHECKING:
    from together import Together

_FULL = re.compile(r"capacity|no room|too many adapters|maximum number of adapters|max(imum)? adapters", re.IGNORECASE)
_CHANGES = 3  # of an adapter's version, while it is being detached
_READY, _FAILED = "ADAPTER_LOAD_STATE_READY", "ADAPTER_LOAD_STATE_FAILED"


def read_adapter(adapter: Any) -> RemoteAdapter:
    """An attached adapter as the provider tells it. Raises UnexpectedAnswer where it has no id or no model."""
    id, model = text(getattr(adapter, "id", None)), text(getattr(adapter, "adapter_model_id", None))
    if id is None or model is None:
        raise UnexpectedAnswer("the provider's answer is not as documented: an adapter has no id, or no model")
    clusters = [each for each in getattr(adapter, "per_cluster", None) or () if each is not None]
    states = [text(getattr(cluster, "state", None)) for cluster in clusters]
    wanted = text(getattr(adapter, "desired_revision_id", None))
    refused = [cluster for cluster in clusters if getattr(cluster, "adapter_valid", None) is False]
    return RemoteAdapter(
        id=id,
        adapter_id=model,
        is_ready=bool(clusters) and not refused and all(_serves(cluster, wanted) for cluster in clusters),
        has_failed=bool(refused) or _FAILED in states,
        message=_message(clusters),
        version=text(getattr(adapter, "etag", None)),
    )


def _serves(cluster: Any, wanted: str | None) -> bool:
    """Has a cluster the adapter on its pods, in the revision that is wanted?"""
    loaded = text(getattr(cluster, "realized_revision_id", None))
    ready = count(getattr(cluster, "ready_pod_count", None)) or 0
    return text(getattr(cluster, "state", None)) == _READY and ready > 0 and loaded in (None, wanted)


def _message(clusters: list[Any]) -> str:
    said = [
        text(getattr(cluster, "adapter_valid_reason", None))
        or text(getattr(cluster, "message", None))
        or (text(getattr(cluster, "state", None)) or "").removeprefix("ADAPTER_LOAD_STATE_").lower()
        for cluster in clusters
    ]
    return brief("; ".join(dict.fromkeys(filter(None, said))))


def list_adapters(client: Together, endpoint_id: str, deployment_id: str) -> list[RemoteAdapter]:
    """The adapters of a deployment."""
    with translate_sdk_errors(f"the adapters of deployment {deployment_id}"):
        return [read_adapter(each) for each in listed(client.endpoints.adapters.list(endpoint_id, deployment_id))]


def attach_adapter(
    client: Together, endpoint_id: str, deployment_id: str, adapter_id: str, before_create: BeforeCreate
) -> RemoteAdapter:
    """Attach an adapter, once. Raises NoRoom, CreationInDoubt, ProviderUnavailable, ProviderRefused."""
    once = client.with_options(max_retries=0)

    def find() -> RemoteAdapter | None:
        found = list_adapters(client, endpoint_id, deployment_id)
        return next((adapter for adapter in found if adapter.adapter_id == adapter_id), None)

    def create() -> RemoteAdapter:
        before_create()
        return read_adapter(
            once.endpoints.adapters.create(
                endpoint_id=endpoint_id, deployment_id=deployment_id, adapter_model_id=adapter_id
            )
        )

    try:
        return create_once(f"adapter {adapter_id} on {deployment_id}", find, create, path="/adapters")
    except (ProviderRefused, ProviderUnavailable) as error:
        status = getattr(error.__cause__, "status_code", None)
        if status in (400, 409, 412, 422, 429) and _FULL.search(str(error)):
            raise NoRoom(str(error)) from error.__cause__
        raise


def detach_adapter(client: Together, endpoint_id: str, deployment_id: str, adapter: RemoteAdapter) -> None:
    """Detach an adapter by its version, which the provider wants named; by that of now where it has changed.

    Raises RemoteNotFound.
    """
    what = f"detaching adapter {adapter.adapter_id} from {deployment_id}"
    adapters = client.endpoints.adapters
    etag = adapter.version
    for attempt in range(_CHANGES):
        with translate_sdk_errors(what):
            if etag is None or attempt:
                now = adapters.retrieve(adapter.id, endpoint_id=endpoint_id, deployment_id=deployment_id)
                etag = text(getattr(now, "etag", None)) or "*"
        try:
            with translate_sdk_errors(what):
                adapters.delete(adapter.id, endpoint_id=endpoint_id, deployment_id=deployment_id, etag=etag)
                return
        except ProviderError as error:
            changed = getattr(error.__cause__, "status_code", None) in (409, 412)
            if not changed or attempt == _CHANGES - 1:
                raise
