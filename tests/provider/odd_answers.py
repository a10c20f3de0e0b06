"""Change what the provider answers, on its way to us: HTML instead of JSON, fields that lack or are something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

from provider.together.adapter import TogetherProvider
from tests.provider.world import World

HTML = "<html><body>502 Bad Gateway</body></html>"


def garble(world: World, method: str, path: str, change: Callable[[Any], Any], *, times: int = 10**6) -> None:
    """Change what the provider answers to a request whose path ends so; text instead of JSON is HTML."""
    left = times

    def hook(response: httpx.Response) -> None:
        nonlocal left
        if response.request.method == method and response.request.url.path.endswith(path) and left:
            left -= 1
            response.read()
            changed = change(response.json() if response.content else None)
            if isinstance(changed, str):
                response.headers["content-type"] = "text/html"
            response._content = (changed if isinstance(changed, str) else json.dumps(changed)).encode()

    world.client._client.event_hooks = {"response": [hook]}


def each(**fields: Any) -> Callable[[Any], Any]:
    """Every item of a list with these fields instead; one that is given as `...` lacks."""

    def change(answer: Any) -> Any:
        def item(old: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in {**old, **fields}.items() if value is not ...}

        return {**answer, "data": [item(old) for old in answer["data"]]}

    return change


def only(name: str, **fields: Any) -> Callable[[Any], Any]:
    """The item of that name with these fields instead."""

    def change(answer: Any) -> Any:
        return {
            **answer,
            "data": [{**old, **fields} if name in str(old.get("name")) else old for old in answer["data"]],
        }

    return change


def instead(world: World, path: str, answer: Any) -> TogetherProvider:
    """A provider that gets this to all requests whose path ends so, without the provider being asked."""

    class Transport(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if not request.url.path.endswith(path):
                return super().handle_request(request)
            return httpx.Response(200, html=answer) if isinstance(answer, str) else httpx.Response(200, json=answer)

    return TogetherProvider(world.client.with_options(http_client=httpx.Client(transport=Transport())))
