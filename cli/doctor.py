"""`reasoning doctor`: what is set up wrong, and what to do about it. `status` and `serve` show a part of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.environment import env_file
from cli.options import AsJson, Data, find_data
from cli.output import print_json, print_line, strip_controls

if TYPE_CHECKING:
    from pipeline.diagnosis import Finding

app = typer.Typer()

_REACH_SECONDS = 5.0


@app.command()
def doctor(
    data: Data = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no server, neither provider nor upstreams")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for what is set up wrong, and say what to do about it. Spends nothing; exits with 1 if anything failed."""
    from pipeline.diagnosis import look_at_machine, look_at_provider, look_at_state

    folder = find_data(data)
    found = [*look_at_env_file(), *look_at_state(folder, given=data), *look_at_machine(folder)]
    if not offline:
        found += look_at_provider(folder)
    found += [*look_at_gateway(offline=offline), *look_at_services(folder)]
    if as_json:
        print_json(found)
    else:
        print_findings(found)
        counts = {level: sum(each.level == level for each in found) for level in ("ok", "warn", "fail")}
        print_line(", ".join(f"{count} {level}" for level, count in counts.items()))
    if any(each.level == "fail" for each in found):
        raise typer.Exit(1)


def print_findings(found: Sequence[Finding]) -> None:
    """A line each: how it is, what was looked at, what was found; and below it what to do."""
    width = max((len(each.name) for each in found), default=0)
    for each in found:
        print_line(strip_controls(f"{each.level:<4}  {each.name:<{width}}  {each.text}"))
        if each.remedy:
            print_line(strip_controls(f"{'':<4}  {'':<{width}}  -> {each.remedy}"))


def look_at_env_file() -> list[Finding]:
    """Whether the `.env` beside the settings file is read."""
    from pipeline.diagnosis import Finding

    path, is_private = env_file()
    if not path.exists():
        return []
    if is_private:
        return [Finding("settings", "ok", f"keys and settings of ours are taken from {path}")]
    text = f"{path} is not read: others may read or write it, or it is another user's"
    return [Finding("settings", "warn", text, f"chmod 600 {path}, if it is yours")]


def look_at_gateway(*, offline: bool) -> list[Finding]:
    """Whether the gateway's upstreams have credentials, and answer."""
    from concurrent.futures import ThreadPoolExecutor

    from gateway.errors import GatewayConfigError
    from gateway.settings import do_clients_bring_credentials, load_upstreams, without_credentials
    from pipeline.diagnosis import Finding

    try:
        upstreams, clients_bring = load_upstreams(), do_clients_bring_credentials()
    except GatewayConfigError as error:
        return [Finding("gateway", "fail", str(error))]
    missing = without_credentials(upstreams)
    found = []
    for name in upstreams:
        if name not in missing:
            found.append(Finding("upstream", "ok", f"{name}: has its credential"))
        elif clients_bring or len(missing) < len(upstreams):
            found.append(Finding("upstream", "ok", f"{name}: no key of ours, clients have to bring theirs"))
        else:
            remedy = (
                f"set {name.upper()}_API_KEY, or client_credentials = true in [gateway] where clients bring their own"
            )
            found.append(Finding("upstream", "warn", f"{name}: no API key of ours", remedy))
    if offline:
        return found
    asked = [servers for name, servers in upstreams.items() if clients_bring or name not in missing]
    urls = sorted({server.url for servers in asked for server in servers})
    with ThreadPoolExecutor(8) as pool:
        for url, problem in zip(urls, pool.map(_problem_reaching, urls), strict=True):
            if problem is None:
                found.append(Finding("upstream", "ok", f"{url} answers"))
            else:
                remedy = "check the network, a proxy (HTTPS_PROXY) and the URL"
                found.append(Finding("upstream", "warn", f"{url} cannot be reached: {problem}", remedy))
    return found


def _problem_reaching(url: str) -> str | None:
    """Why a server does not answer, None where it does, with whatever status. Sends no credential."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=_REACH_SECONDS):  # noqa: S310 - of the settings, http or https
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def look_at_services(folder: Path) -> list[Finding]:
    """Whether `reasoning serve` is up and answers; otherwise whether its ports are free."""
    return list(_services(folder))


def _services(folder: Path) -> Iterator[Finding]:
    from cli.errors import PortInUse
    from cli.serve import GATEWAY_PORT, HOST, PREFECT_PORT, served
    from cli.supervisor import answers, free_port
    from pipeline.diagnosis import Finding

    up = served(folder)
    if not up:
        yield Finding("serve", "warn", "not up for this folder: nothing lands, no guard runs", "`reasoning serve`")
        ports = ((PREFECT_PORT, "Prefect", "--prefect-port"), (GATEWAY_PORT, "the gateway", "--gateway-port"))
        for port, what, option in ports:
            try:
                free_port(HOST, port, what=what, option=option)
            except PortInUse as error:
                first, _, remedy = str(error).partition(". ")
                yield Finding("ports", "warn", first, remedy)
            else:
                yield Finding("ports", "ok", f"{port} is free for {what}")
        return
    for name, path in (("gateway", "/healthz"), ("prefect", "/api/health"), ("emulator", "/emulator/healthz")):
        if url := up.get(name):
            if answers(f"{url}{path}"):
                yield Finding("serve", "ok", f"{name} answers at {url}")
            else:
                yield Finding("serve", "fail", f"{name} does not answer at {url}", f"look at {folder / 'logs'}")
    if (gateway := up.get("gateway")) and not answers(f"{gateway}/readyz"):
        yield Finding(
            "serve", "warn", f"{gateway}/readyz says that it is not ready", f"`curl {gateway}/readyz` says why"
        )
