"""The flows by name, as `prefect.yaml` lists them. Nothing imports a flow; whoever wants one loads it here."""

from __future__ import annotations

import asyncio
import difflib
import importlib
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import FlowError, UnknownFlow

if TYPE_CHECKING:
    from prefect import Flow

PROJECT = Path(__file__).resolve().parents[1]


def entrypoints() -> dict[str, str]:
    """Entrypoint (`flows.fine_tune.fine_tune`) by deployment name (`fine_tune`), in the order of `prefect.yaml`."""
    import yaml

    path = PROJECT / "prefect.yaml"
    try:
        deployments = yaml.safe_load(path.read_text())["deployments"]
        return {deployment["name"]: deployment["entrypoint"] for deployment in deployments}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise FlowError(f"cannot read the flows from {path}: {error!r}; restore it from the repository") from error


def load_flow(name: str) -> Flow[..., Any]:
    """The flow that deployment `name` runs (`fine_tune` or `fine-tune`). Raises `UnknownFlow`."""
    known = entrypoints()
    wanted = name.replace("-", "_")
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
        raise UnknownFlow(f"there is no flow {name!r}: {hint}")
    for name in ("PREFECT_SERVER_ANALYTICS_ENABLED", "GX_ANALYTICS_ENABLED"):
        os.environ.setdefault(name, "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # Of a server for this run alone: on a new machine it makes its database first, for longer than Prefect's 20 s.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    from prefect.flows import load_flow_from_entrypoint

    # First, because Prefect looks for the module in the current folder, which may hold a `flows/` of the user's own.
    importlib.import_module(known[wanted].rpartition(".")[0])
    # Without the placeholder that Prefect makes of a module that does not import: the import error is the news.
    return load_flow_from_entrypoint(known[wanted], use_placeholder_flow=False)


def run_flow(name: str, **parameters: Any) -> Any:
    """Run a flow here and now, observed by the Prefect server of `PREFECT_API_URL` (else one that lasts as long as the
    run), and return its result. Not for use inside an event loop."""
    result = load_flow(name)(**parameters)
    return asyncio.run(_wait(result)) if inspect.isawaitable(result) else result


async def _wait(awaitable: Any) -> Any:
    return await awaitable
