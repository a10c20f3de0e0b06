"""Endpoints and deployments at Together: created once, read with care, changed whatever their version.

Its states are `DEPLOYMENT_STATE_...`. An update or a delete may want the `etag` of the object (documented as optional,
together 3.1.1); a stop overwrites all other wishes (`client.overwrite`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from provider.clock import moment
from provider.errors import (
    ConfigRefused,
    KeyRefused,
    ProviderRefused,
    UnexpectedAnswer,
    brief,
    names_the_config,
)
from provider.port import BeforeCreate, RemoteDeployment, RemoteEndpoint, RemoteState, ServingRequest
from provider.together.answers import bare_name, count, created_at, listed, text
from provider.together.client import create_once, overwrite, translate_sdk_errors
from provider.together.serving_configs import MODEL_PATH, base_of

if TYPE_CHECKING:
    from together import Together

INACTIVE_MINUTES = 30
"""The provider's own idle stop, its shortest. A second net only: users report that it may do nothing."""

_STATES = {state.value: state for state in RemoteState}


# -- reading ----------------------------------------------------------------------------------------------------------


def read_endpoint(endpoint: Any) -> RemoteEndpoint:
    """An endpoint as the provider tells it. What cannot be read of it is None."""
    below = getattr(endpoint, "deployments", None)
    readable = below is None or isinstance(below, list)
    return RemoteEndpoint(
        id=text(getattr(endpoint, "id", None)),
        name=bare_name(endpoint),
        served_name=text(getattr(endpoint, "name", None)),
        created_at=moment(getattr(endpoint, "created_at", None)),
        deployments=tuple(_read_summary(each) for each in below or ()) if readable else None,
    )


def _read_summary(summary: Any) -> RemoteDeployment:
    """What the list of endpoints tells of a deployment: no state, and one replica where it does not tell how many."""
    ready = getattr(summary, "ready_replicas", None)
    known = count(0 if ready is None else ready)
    return RemoteDeployment(
        id=text(getattr(summary, "id", None)),
        name=bare_name(summary),
        running=1 if known is None else known,
        hardware=text(getattr(summary, "hardware", None)),
        model_id=text(getattr(summary, "api_model_id", None)),
        created_at=moment(getattr(summary, "created_at", None)),
    )


def read_deployment(deployment: Any) -> RemoteDeployment:
    """A deployment as the provider tells it. What cannot be read of it is None."""
    status = getattr(deployment, "status", None)
    state = text(getattr(status, "state", None))
    said = state.removeprefix("DEPLOYMENT_STATE_").lower() if state else None
    most = getattr(getattr(deployment, "autoscaling", None), "max_replicas", None)
    return RemoteDeployment(
        id=text(getattr(deployment, "id", None)),
        name=bare_name(deployment),
        state=None if said is None else _STATES.get(said, RemoteState.STARTING),
        said=said,
        message=brief(text(getattr(status, "message", None)) or ""),
        running=_running(said, getattr(status, "ready_replicas", None)),
        max_replicas=count(most),
        hardware=text(getattr(deployment, "hardware", None)),
        model=text(getattr(deployment, "model", None)),
        model_id=text(getattr(deployment, "api_model_id", None)),
        created_at=moment(getattr(deployment, "created_at", None)),
        version=text(getattr(deployment, "etag", None)),
    )


def _running(state: str | None, said: Any) -> int | None:
    """Replicas that may be billed. While it stops, those that the provider does not count any more still run."""
    if state == "stopped":
        return 0
    ready = count(0 if said is None and state not in (None, "ready") else said)
    if ready is None:
        return None
    return max(ready, 1) if state == "stopping" else ready


def _is_named(remote: Any, name: str) -> bool:
    if (its := bare_name(remote)) is None:  # it may be the one that is looked for
        raise UnexpectedAnswer("the provider's answer is not as documented: something in the list has no name")
    return its == name


# -- endpoints --------------------------------------------------------------------------------------------------------


def list_endpoints(client: Together) -> list[RemoteEndpoint]:
    """All endpoints of the project."""
    with translate_sdk_errors("all endpoints"):
        return [read_endpoint(endpoint) for endpoint in listed(client.endpoints.list())]


def find_endpoint(client: Together, name: str) -> RemoteEndpoint | None:
    """Our endpoint of that bare name, else None."""
    with translate_sdk_errors(f"looking for endpoint {name}"):
        found = listed(client.endpoints.list(filter=f'name="{name}"'))
        endpoint = next((endpoint for endpoint in found if _is_named(endpoint, name)), None)
        return None if endpoint is None else read_endpoint(endpoint)


def create_endpoint(client: Together, name: str) -> RemoteEndpoint:
    """The endpoint of that name, created where it is not there."""
    once = client.with_options(max_retries=0)
    return create_once(
        f"endpoint {name}",
        lambda: find_endpoint(client, name),
        lambda: read_endpoint(once.endpoints.create(name=name)),
        path="/endpoints",
    )


def delete_endpoint(client: Together, endpoint_id: str) -> None:
    """Delete an endpoint, by its version of now."""
    with translate_sdk_errors(f"deleting endpoint {endpoint_id}"):
        client.endpoints.delete(endpoint_id, **_version(getattr(client.endpoints.retrieve(endpoint_id), "etag", None)))


def _version(etag: Any) -> dict[str, Any]:
    """The argument `etag` for what changes or deletes an object; none, when it has none."""
    return {"etag": etag} if text(etag) else {}


# -- deployments ------------------------------------------------------------------------------------------------------


def list_deployments(client: Together, endpoint_id: str) -> list[RemoteDeployment]:
    """All that is under an endpoint."""
    with translate_sdk_errors(f"looking at what is under endpoint {endpoint_id}"):
        return [read_deployment(remote) for remote in listed(client.endpoints.deployments.list(endpoint_id))]


def find_deployment(client: Together, endpoint_id: str, name: str) -> RemoteDeployment | None:
    """The deployment of that bare name under an endpoint, the oldest if there should be several, else None."""
    with translate_sdk_errors(f"deployment {name}"):
        found = [d for d in listed(client.endpoints.deployments.list(endpoint_id)) if _is_named(d, name)]
        return read_deployment(min(found, key=created_at)) if found else None


def retrieve_deployment(client: Together, endpoint_id: str, deployment_id: str) -> RemoteDeployment:
    """How a deployment is."""
    with translate_sdk_errors(f"deployment {deployment_id}"):
        return read_deployment(client.endpoints.deployments.retrieve(deployment_id, endpoint_id=endpoint_id))


def create_deployment(client: Together, request: ServingRequest, before_create: BeforeCreate) -> RemoteDeployment:
    """The deployment of that name, created where it is not there. Raises ConfigRefused and what `create_once` does."""
    once = client.with_options(max_retries=0)

    def create() -> RemoteDeployment:
        before_create()
        created = once.endpoints.deployments.create(
            endpoint_id=request.endpoint_id,
            name=request.name,
            model=_model_path(client, request.model_object_id),
            config=request.config,
            autoscaling={"min_replicas": request.replicas, "max_replicas": request.replicas},
            inactive_timeout=INACTIVE_MINUTES,
        )
        return read_deployment(created)

    try:
        return create_once(
            f"deployment {request.name}",
            lambda: find_deployment(client, request.endpoint_id, request.name),
            create,
            path="/deployments",
        )
    except ProviderRefused as error:
        status = getattr(error.__cause__, "status_code", None)
        if status in (400, 404, 412, 422) and names_the_config(str(error)):
            raise ConfigRefused(str(error)) from error.__cause__
        raise


def _model_path(client: Together, model_object_id: str) -> str:
    """The path of a model: of one of ours by its id; a base model is named by its path already."""
    is_path = MODEL_PATH.match(model_object_id) is not None
    return model_object_id if is_path else f"projects/{client.project_id}/models/{model_object_id}"


def scale(client: Together, endpoint_id: str, deployment_id: str, replicas: int) -> RemoteDeployment:
    """Tell one deployment how many replicas to have, whatever its version; returns it."""
    deployments = client.endpoints.deployments
    updated = overwrite(
        f"{'scaling' if replicas else 'stopping'} deployment {deployment_id}",
        lambda: deployments.retrieve(deployment_id, endpoint_id=endpoint_id),
        lambda version: deployments.update(
            deployment_id,
            endpoint_id=endpoint_id,
            autoscaling={"min_replicas": replicas, "max_replicas": replicas},
            update_mask="autoscaling",
            **version,
        ),
    )
    return read_deployment(updated)


def delete_deployment(client: Together, endpoint_id: str, deployment: RemoteDeployment) -> None:
    """Delete a deployment by the version that was read."""
    with translate_sdk_errors(f"deleting {deployment.name or deployment.id}"):
        if deployment.id is None:
            raise UnexpectedAnswer("the provider does not tell the id of this deployment: it cannot be deleted")
        client.endpoints.deployments.delete(deployment.id, endpoint_id=endpoint_id, **_version(deployment.version))


def wrong_model(client: Together, deployment: RemoteDeployment, ours: str) -> str | None:
    """Why what a deployment serves is not our model, or None.

    A model of another id in our project, which is not the base, may be what the provider merged ours into.
    """
    path = MODEL_PATH.match(deployment.model or "")
    served = path[2] if path else deployment.model_id
    if served is None:
        raise UnexpectedAnswer(f"deployment {deployment.name}: the provider does not say which model it serves")
    named = MODEL_PATH.match(ours)
    if served == (named[2] if named else ours):
        return None
    reason = f"it serves the model {served}, not ours ({ours})"
    if named or (path and path[1] != client.project_id):
        return reason
    try:
        with translate_sdk_errors(f"model {ours}"):
            base = base_of(client.models.retrieve(ours))
    except KeyRefused:
        raise
    except ProviderRefused:
        return reason
    return reason if base in (None, served) else None


# -- traffic ----------------------------------------------------------------------------------------------------------


def give_traffic(client: Together, endpoint_id: str, deployment_id: str) -> None:
    """Have an endpoint send all its requests to one deployment."""
    with translate_sdk_errors(f"traffic of endpoint {endpoint_id}"):
        endpoint = client.endpoints.retrieve(endpoint_id)
        split = {entry.deployment_id: entry.weight for entry in endpoint.traffic_split or ()}
        if split != {deployment_id: 1}:
            _split_traffic(client, endpoint_id, {deployment_id: 1})


def withdraw_traffic(client: Together, endpoint_id: str) -> None:
    """Take an endpoint's traffic away: with an empty split, or where that is refused with weights of 0.

    Both are documented. An empty list is no populated field, so the update names what it changes.
    """
    with translate_sdk_errors(f"traffic of endpoint {endpoint_id}"):
        endpoint = client.endpoints.retrieve(endpoint_id)
        split = [entry.deployment_id for entry in endpoint.traffic_split or () if entry.weight != 0]
        if not split:
            return
        try:
            _split_traffic(client, endpoint_id, {})
        except ProviderRefused:
            _split_traffic(client, endpoint_id, dict.fromkeys(split, 0))


def _split_traffic(client: Together, endpoint_id: str, weights: Mapping[str, int]) -> None:
    overwrite(
        f"traffic of endpoint {endpoint_id}",
        lambda: client.endpoints.retrieve(endpoint_id),
        lambda version: client.endpoints.update(
            endpoint_id,
            traffic_split=[{"deployment_id": id, "weight": weight} for id, weight in weights.items()],
            update_mask="trafficSplit",
            **version,
        ),
    )
