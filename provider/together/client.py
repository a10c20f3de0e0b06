"""The connection to Together: the real one, or the emulator on this machine (the default).

The SDK retries every request twice, creates included, and sends no idempotency key, so a lost response makes two jobs.
Reads keep its retries; every create goes through `create_once`, which looks before it asks, and again on any doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from provider.errors import (
    AccessDenied,
    CreationInDoubt,
    KeyRefused,
    ProviderError,
    ProviderRefused,
    ProviderSettingsError,
    ProviderUnavailable,
    RemoteNotFound,
    Throttled,
    UnexpectedAnswer,
    brief,
)
from provider.settings import emulator_url, provider_name, together_settings
from reasoning.errors import ReasoningError

if TYPE_CHECKING:
    import together
    from together import AsyncTogether, Together

TOGETHER_URL = "https://api.together.ai"
INFERENCE_URL = "https://api-inference.together.ai"
"""Where the SDK sends chat completions unless a base URL is set (together 3.1.1, `resources/chat/completions.py`)."""

T = TypeVar("T")


def provider_url(provider: str | None = None, base_url: str | None = None) -> str:
    """Base URL of the provider, without `/v1`. Raises ProviderSettingsError, naming the setting.

    `emulator` needs `base_url` or `REASONING_PROVIDER_URL`. The real Together is
    reached only when it is asked for by name, however the environment is set.
    """
    name = provider_name(provider)
    if name == "together":
        url = _without_secrets(base_url or together_settings().base_url or TOGETHER_URL)
    elif name in ("emulator", "local"):
        url = _without_secrets(base_url or emulator_url() or "")
        if not url:
            raise ProviderSettingsError(
                "the emulator has no URL: run `reasoning serve --provider emulator` for this data folder, which "
                "starts it, or `python -m emulator`, and set REASONING_PROVIDER_URL to the address that it prints"
            )
        host = (urlsplit(url).hostname or "").rstrip(".")
        if f".{host}".endswith((".together.ai", ".together.xyz")):
            raise ProviderSettingsError(f"{url} costs money: use it with the provider `together`, not `{name}`")
    else:
        raise ProviderSettingsError(f"unknown provider {name!r}: use `local`, `emulator` or `together`")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ProviderSettingsError(f"{url!r} is not an http(s) URL of a provider")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ProviderSettingsError(f"{url} must not end in /v1: the SDK adds it")
    return url.rstrip("/")


def _without_secrets(url: str) -> str:
    """The URL, which errors name. Raises ProviderSettingsError, without it, where it holds more than an address."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ProviderSettingsError(
            "the provider's URL holds a user, a password or a query, which errors and logs would show: write the "
            "address alone (http://HOST:PORT), and the key in TOGETHER_API_KEY"
        )
    return url


def connect(
    *,
    provider: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    project_id: str | None = None,
    timeout: float = 60.0,
) -> Together:
    """A `together.Together` for the provider, with its project known (`GET /v3/whoami` tells it).

    Raises ProviderSettingsError, ProviderUnavailable when nothing answers, ProviderRefused for a wrong key.
    """
    url = provider_url(provider, base_url)
    is_local = provider_name(provider) != "together"
    # The real key never goes to another server, so it is not taken from the environment for one.
    key = api_key or ("local" if is_local else together_settings().api_key)
    if not key:
        raise ProviderSettingsError("TOGETHER_API_KEY is not set: the provider `together` needs it")
    if not (key.isascii() and key.isprintable()):
        raise ProviderSettingsError("the API key has characters that no key has: copy it again")
    project = project_id or (None if is_local else together_settings().project_id)

    from together import Together  # 2 s of imports, so only who talks to the provider pays them

    # A base URL that is given, be it the default, sends chat completions away from the host that is made for them.
    own = None if url == TOGETHER_URL and not together_settings().base_url else url
    client = Together(api_key=key, base_url=own, project_id=project, timeout=timeout)
    if not client.project_id:
        client.project_id = _find_project(client, url)
    return client


def inference_url(provider: str | None = None, base_url: str | None = None) -> str:
    """Base URL for chat completions, without `/v1`: Together's own host for them, else the provider's.

    Raises ProviderSettingsError as `provider_url` does.
    """
    url = provider_url(provider, base_url)
    return INFERENCE_URL if url == TOGETHER_URL else url


def asynchronous(client: Together) -> AsyncTogether:
    """An asynchronous client of the same account and host, without the SDK's own retries."""
    from together import AsyncTogether

    overridden = getattr(client, "_base_url_overridden", True)
    return AsyncTogether(
        api_key=client.api_key,
        base_url=client.base_url if overridden else None,
        project_id=client.project_id,
        max_retries=0,
    )


def _find_project(client: Together, url: str) -> str:
    import httpx

    with translate_sdk_errors(f"looking for this key's project at {url}"):
        answer = client.get("/v3/whoami", cast_to=httpx.Response).json()
        project = (answer.get("project") or {}).get("id")
    if not project:
        raise ProviderSettingsError("this API key belongs to no one project: set TOGETHER_PROJECT_ID")
    return str(project)


@contextmanager
def translate_sdk_errors(what: str) -> Iterator[None]:
    """Turn the SDK's errors into ours, which say what was being asked.

    Also those of reading the answer, where that is done in the block: UnexpectedAnswer.
    """
    import httpx
    import together

    try:
        yield
    except ReasoningError:
        raise
    except together.APIStatusError as error:
        status = error.status_code
        message = f"{what}: the provider answered {status}: {_message(error)}"
        if status == 404:
            raise RemoteNotFound(message) from error
        if status == 401:
            raise KeyRefused(f"{message}. Check TOGETHER_API_KEY: it may have been revoked") from error
        if status == 403:
            raise AccessDenied(message) from error
        if status in (408, 409, 429) or status >= 500:
            raise ProviderUnavailable(message) from error
        raise ProviderRefused(message) from error
    except together.APIConnectionError as error:
        reason = brief(str(error.__cause__ or error))
        raise ProviderUnavailable(f"{what}: no answer from the provider ({reason})") from error
    except httpx.TransportError as error:  # the SDK sends a file's bytes without its own error handling
        raise ProviderUnavailable(f"{what}: no answer from the provider ({brief(str(error))})") from error
    except together.APIResponseValidationError as error:
        reason = brief(error.message)
        raise UnexpectedAnswer(f"{what}: the provider's answer is not as documented: {reason}") from error
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        reason = brief(f"{type(error).__name__}: {error}")
        raise UnexpectedAnswer(f"{what}: the provider's answer is not as documented ({reason})") from error


def _message(error: together.APIStatusError) -> str:
    """What the provider says of an error, short and without our key, should it repeat that."""
    message = _whole_message(error)
    key = error.request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    return brief(message.replace(key, "***") if key != "local" and key else message)


def _whole_message(error: object) -> str:
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict) and inner.get("message"):
            return str(inner["message"])
        if isinstance(inner, str):
            return inner
    elif told := _told_by(getattr(error, "response", None)):
        return told
    return str(getattr(error, "message", error))


def _told_by(response: Any) -> str | None:
    """What an answer says of an error, where the SDK has not read it: its words for uploads hold all headers."""
    try:
        told = response.json()["error"]["message"]
    except Exception:  # it was not kept, or is of any other form
        return None
    return told if isinstance(told, str) else None


_WANTS_A_VERSION = (400, 409, 412, 422, 428)


def overwrite(what: str, read: Callable[[], Any], update: Callable[[dict[str, Any]], T]) -> T:
    """Update an object whatever its version, for changes that outweigh every other wish.

    `what` is being done, for errors. `update` takes the arguments that name a version: none at first, then the `etag`
    of the object as `read` gets it, where the provider wants one (documented as optional, together 3.1.1). Raises the
    first refusal.
    """
    try:
        with translate_sdk_errors(what):
            return update({})
    except ProviderError as first:
        if getattr(first.__cause__, "status_code", None) not in _WANTS_A_VERSION:
            raise
        for _ in range(2):  # it may change once more in between
            with suppress(ProviderError), translate_sdk_errors(what):
                if etag := getattr(read(), "etag", None):
                    return update({"etag": etag})
        raise


def create_once(what: str, find: Callable[[], T | None], create: Callable[[], T], *, path: str) -> T:
    """Create a uniquely named remote object at most once.

    `find` looks it up by its name, `create` sends one create whose POST ends in `path` (with no retries of the SDK's).
    Raises CreationInDoubt when the create may or may not have happened and `find` sees nothing: look again before
    another create. Raises ProviderUnavailable when it certainly did not happen but may later (Throttled: it was refused
    unseen), else ProviderRefused.
    """
    import httpx
    import together

    with translate_sdk_errors(f"looking for {what}"):
        if (found := find()) is not None:
            return found
    try:
        with translate_sdk_errors(f"creating {what}"):
            return create()
    except ProviderError as error:
        cause = error.__cause__
        if isinstance(cause, together.RateLimitError):
            raise Throttled(str(error)) from cause
        request: httpx.Request | None = getattr(cause, "request", None)
        sent = request is None or (request.method == "POST" and request.url.path.endswith(path))
        if not sent or isinstance(error, ProviderRefused):
            raise
        if isinstance(cause, together.APIConnectionError) and isinstance(
            cause.__cause__, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
        ):
            raise  # never left this machine
        with translate_sdk_errors(f"looking for {what} after a lost answer"):
            if (found := find()) is not None:
                return found
        raise CreationInDoubt(
            f"{error}. It may have been done all the same, though it is not to be seen yet; "
            f"it is looked for again before anything is sent again"
        ) from error
