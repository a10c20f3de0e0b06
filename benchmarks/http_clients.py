"""Which HTTP library carries the client's calls: time of a call, import, size, fork. See docs/guides/client.md.

    python benchmarks/http_clients.py            # about a minute; uv on the PATH makes each library its environment

Each library asks the same canned server on loopback, keep-alive, 1,500 calls after 100 to warm up.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARIES = ("aiohttp", "urllib3", "niquests", "pyreqwest", "httpx", "httpx2", "httpcore2[asyncio]")
BODY = b'{"model":"a/b","messages":[{"role":"user","content":"' + b"x" * 1500 + b'"}],"max_tokens":512}'
HEADERS = {"Authorization": "Bearer local", "Content-Type": "application/json"}
CALLS = 1500


def calls(library: str, url: str) -> tuple[Callable[[], Any] | None, Callable[[], Awaitable[Any]] | None]:
    """One sync and one async call of a library, as far as it has them."""
    if library == "urllib3":
        import urllib3

        pool = urllib3.PoolManager()
        return lambda: pool.request("POST", url, body=BODY, headers=HEADERS, retries=False).data, None
    if library == "aiohttp":
        import aiohttp

        sessions: list[aiohttp.ClientSession] = []

        async def aio() -> bytes:
            if not sessions:
                sessions.append(aiohttp.ClientSession())
            async with sessions[0].post(url, data=BODY, headers=HEADERS) as response:
                return await response.read()

        return None, aio
    if library == "pyreqwest":
        from pyreqwest.client import ClientBuilder, SyncClientBuilder

        one, other = SyncClientBuilder().build(), ClientBuilder().build()

        async def rust() -> Any:
            return await (await other.post(url).headers(HEADERS).body_bytes(BODY).build().send()).bytes()

        return lambda: one.post(url).headers(HEADERS).body_bytes(BODY).build().send().bytes(), rust
    module = importlib.import_module(library)
    if library == "httpcore2":
        pool, apool = module.ConnectionPool(), module.AsyncConnectionPool()

        async def core() -> Any:
            return (await apool.request("POST", url, content=BODY, headers=HEADERS)).content

        return lambda: pool.request("POST", url, content=BODY, headers=HEADERS).content, core
    if library == "niquests":
        session, asession = module.Session(), module.AsyncSession()

        async def quests() -> Any:
            return (await asession.post(url, data=BODY, headers=HEADERS)).content

        return lambda: session.post(url, data=BODY, headers=HEADERS).content, quests
    client, aclient = module.Client(trust_env=False), module.AsyncClient(trust_env=False)

    async def httpx() -> Any:
        return (await aclient.post(url, content=BODY, headers=HEADERS)).content

    return lambda: client.post(url, content=BODY, headers=HEADERS).content, httpx


def measure(library: str, url: str) -> None:
    """In the library's own environment: print `sync p50 p99 async p50 p99 fork`, times in microseconds."""
    sync, asynchronous = calls(library, url)
    found = []
    for call in (sync, asynchronous):
        if call is None:
            found += ["-", "-"]
            continue
        times = asyncio.run(_repeat_async(call)) if call is asynchronous else _repeat(call)
        times.sort()
        found += [f"{times[len(times) // 2] * 1e6:.0f}", f"{times[int(len(times) * 0.99)] * 1e6:.0f}"]
    print(*found, forks(library, url) if sync else "-", flush=True)
    os._exit(0)  # some of them do not end by themselves


def _repeat(call: Callable[[], Any]) -> list[float]:
    times = []
    for i in range(CALLS + 100):
        started = time.perf_counter()
        call()
        if i >= 100:
            times.append(time.perf_counter() - started)
    return times


async def _repeat_async(call: Callable[[], Awaitable[Any]]) -> list[float]:
    times = []
    for i in range(CALLS + 100):
        started = time.perf_counter()
        await call()
        if i >= 100:
            times.append(time.perf_counter() - started)
    return times


def forks(library: str, url: str) -> str:
    """Does a client made in a forked child work, when the parent has used one?"""
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sync, _ = calls(library, url)
        assert sync is not None
        sync()
        os._exit(0)
    return "yes" if os.waitpid(child, 0)[1] == 0 else "no"


def cpu_of(argv: list[str]) -> float:
    """The least CPU time of five runs of a command, in milliseconds."""
    import resource

    least = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return least * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=2, metavar=("LIBRARY", "URL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
    uv = shutil.which("uv") or sys.exit("uv is needed on the PATH: it makes each library an environment")
    with (
        tempfile.TemporaryDirectory() as scratch,
        subprocess.Popen([sys.executable, str(HERE / "chat_server.py")], stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1/chat/completions"
        print("| library | sync p50 / p99 us | async p50 / p99 us | import CPU ms | installed MB | after a fork |")
        print("|---|---|---|---|---|---|")
        for library in LIBRARIES:
            name = library.split("[")[0]
            place = Path(scratch) / name
            subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(place)], check=True)
            python = str(place / "bin" / "python")
            install = [uv, "pip", "install", "-q", "--compile-bytecode", "--python", python, library]
            subprocess.run(install, check=True)
            size = sum(f.stat().st_size for f in place.glob("lib/*/site-packages/**/*") if f.is_file())
            script = [python, str(Path(__file__).resolve()), "--measure", name, url]
            s50, s99, a50, a99, fork = subprocess.check_output(script, text=True).split()
            spent = cpu_of([python, "-c", f"import {name}"]) - cpu_of([python, "-c", "pass"])
            print(
                f"| {library} | {s50} / {s99} | {a50} / {a99} | {spent:.0f} | {size / 1e6:.1f} | {fork} |", flush=True
            )
        server.terminate()


if __name__ == "__main__":
    main()
