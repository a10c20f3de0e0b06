"""`reasoning serve`: Prefect's server, the flows on their schedules, local models and the gateway as one."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.environment import has_provider_url
from cli.errors import ServeError
from cli.prefect_server import own_origins
from cli.supervisor import Stopped, Supervisor, answers, free_port
from provider.providers import local_server_command, local_server_url
from reasoning.config import settings_file
from reasoning.io.hosts import host_tag
from storage.errors import DataFolderBusy
from storage.files import make_folder, open_private
from storage.layout import Layout
from storage.locks import Held, file_lock

HOST = "127.0.0.1"
PREFECT_PORT = 4200
GATEWAY_PORT = 8001
EMULATOR_PORT = 8002
WORK_POOL = "reasoning"
PROJECT = Path(__file__).resolve().parents[1]
PREFECT_SERVER = [sys.executable, "-m", "cli.prefect_server"]
PASSWORD = "prefect.password"  # noqa: S105 - the file's name

# Where the user's Prefect would otherwise go, and what would weaken the one that is served here.
_NOT_INHERITED = (
    *("PREFECT_PROFILE", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_CLOUD_API_URL"),
    *(
        "PREFECT_SERVER_API_AUTH_STRING",
        "PREFECT_SERVER_API_BASE_PATH",
        "PREFECT_UI_API_URL",
        "PREFECT_SERVER_UI_API_URL",
    ),
    *("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"),
    *("PREFECT_SERVER_CSRF_PROTECTION_ENABLED", "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"),
)


@dataclass(frozen=True)
class Service:
    """One line of the table of URLs."""

    name: str
    url: str
    what: str


def serve(
    data: Path,
    *,
    provider: str = "local",
    host: str = HOST,
    prefect_port: int = PREFECT_PORT,
    gateway_port: int = GATEWAY_PORT,
    emulator_port: int = EMULATOR_PORT,
    on_step: Callable[[str], None],
    on_ready: Callable[[list[Service]], None],
) -> str:
    """Run everything until a signal comes, and return its name. All of it is stopped on the way out.

    `host` is the address that the gateway and Prefect's server listen on, such as 0.0.0.0 in a container; the emulator
    and local models stay on 127.0.0.1. A port of 0 is any free one. Raises `PortInUse`, `ServeError` when the data
    folder is served already, and `ChildDied` when one of the processes ends: then all the others are stopped too, as
    half a flywheel (agents served, costs unguarded) is worse than none.
    """
    data = data.absolute()
    with only_one(data) as lock:
        lock.tell(provider=provider)
        prefect = f"http://{HOST}:{free_port(host, prefect_port, what='Prefect', option='--prefect-port')}"
        gateway = f"http://{HOST}:{free_port(host, gateway_port, what='the gateway', option='--gateway-port')}"
        emulator = None
        if provider == "emulator" and not has_provider_url():
            port = free_port(HOST, emulator_port, what="the emulator", option="--emulator-port")
            emulator = f"http://{HOST}:{port}"
        with tempfile.TemporaryDirectory(prefix="reasoning-serve-") as scratch:
            env = environment(data, provider=provider, prefect=prefect, emulator=emulator, scratch=Path(scratch))
            env |= {"PREFECT_SERVER_API_HOST": host}
            try:
                with Supervisor(data / "logs", env) as children:
                    services = _start_provider(children, data, provider=provider, emulator=emulator, say=on_step)
                    services = _start(children, data, host, prefect=prefect, gateway=gateway, say=on_step) + services
                    urls = {"prefect": prefect, "gateway": gateway, "emulator": emulator}
                    lock.tell(network=_network(data), **urls)
                    on_ready(services)
                    children.watch(lambda: check_served(lock))
            except Stopped as signal_name:
                return str(signal_name)
    raise AssertionError("watch() returned")


def _start_provider(
    children: Supervisor, data: Path, *, provider: str, emulator: str | None, say: Callable[[str], None]
) -> list[Service]:
    """Start what plays the provider on this machine, and wait until it answers; returns its line for people."""
    if emulator:
        say("the emulator")
        port = emulator.rpartition(":")[2]
        command = [sys.executable, "-m", "emulator", "--data", str(data / "emulator"), "--host", HOST, "--port", port]
        children.start("emulator", command)
        children.wait_until("the emulator", lambda: answers(f"{emulator}/emulator/healthz"))
        return [Service("emulator", emulator, "speaks Together's API; trains, serves and bills here")]
    if provider == "local" and not has_provider_url():
        say("the models of this machine")
        children.start("local-models", local_server_command(data))
        children.wait_until("the server of local models", lambda: local_server_url(data) is not None)
        return [Service("models", str(local_server_url(data)), "trained and served on this machine, for nothing")]
    return []


def _start(
    children: Supervisor, data: Path, host: str, *, prefect: str, gateway: str, say: Callable[[str], None]
) -> list[Service]:
    say("the gateway")
    port = gateway.rpartition(":")[2]
    children.start("gateway", [sys.executable, "-m", "gateway", "--data", str(data), "--host", host, "--port", port])
    say("Prefect's server (some 20 s the first time)")
    # Prefect reads `.env`, `prefect.toml` and `pyproject.toml` of its current folder, which may be another Prefect's.
    children.start("prefect-server", PREFECT_SERVER, cwd=children.logs)
    children.wait_until("Prefect's server", lambda: answers(f"{prefect}/api/health"))
    say("every flow of prefect.yaml")
    children.run("prefect-deploy", [sys.executable, "-m", "cli.deployments"], cwd=children.logs)
    say("the worker")
    # Prefect puts the worker's current folder on `sys.path` where it looks for a flow: one without modules.
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", WORK_POOL]
    children.start("prefect-worker", worker, cwd=children.logs)
    children.wait_until("the worker", lambda: _pool_is_ready(prefect, children.env["PREFECT_API_AUTH_STRING"]))
    children.wait_until("the gateway", lambda: answers(f"{gateway}/healthz"))
    return [
        Service("gateway", gateway, f"for agents, and the page for people; the token: {data / 'gateway.token'}"),
        Service("Prefect", prefect, f"every flow, its runs and artifacts; the password: {data / PASSWORD}"),
        Service("logs", str(data / "logs"), "one file per process"),
    ]


def environment(data: Path, *, provider: str, prefect: str, emulator: str | None, scratch: Path) -> dict[str, str]:
    """What the children see: our own, with the data folder, the provider and Prefect's server settled.

    Which server the user's Prefect talks to otherwise, perhaps one elsewhere with a key, has no say. Prefect's server
    runs commands for whoever may ask it, so it gets a password (`prefect_password`), as do its clients.
    """
    password = prefect_password(data)
    port = prefect.rpartition(":")[2]
    config = settings_file()
    env = {name: value for name, value in os.environ.items() if name.upper() not in _NOT_INHERITED}
    env.setdefault("PREFECT_HOME", str(data / "prefect"))
    env |= {
        "REASONING_DATA": str(data),
        "REASONING_PROVIDER": provider,
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_SERVER_API_HOST": HOST,
        # Not `server start --port`: with that the UI goes on calling port 4200.
        "PREFECT_SERVER_API_PORT": port,
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(own_origins(int(port))),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        # On SQLite the server answers 503 while another writes. What asks five times, as is the default, may give up.
        "PREFECT_CLIENT_MAX_RETRIES": "20",
        "PYTHONUNBUFFERED": "1",
        # `python -m` would import a `tasks.py` or `storage/` of the current folder, or of the user's PYTHONPATH.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join([str(PROJECT), *filter(None, [env.get("PYTHONPATH")])]),
        # Runs start as `python -m prefect.engine`: that must be this Python, in a virtual environment or not.
        "PATH": os.pathsep.join([str(_python_on_path(scratch)), env.get("PATH", os.defpath)]),
    }
    if emulator:
        env["REASONING_PROVIDER_URL"] = emulator
    # Runs have a folder of their own, where a relative path names another file or none.
    if config.exists():
        env["REASONING_CONFIG"] = str(config.absolute())
    if ledger := env.get("REASONING_LEDGER_URL"):
        env["REASONING_LEDGER_URL"] = _absolute_sqlite(ledger)
    return env


def _absolute_sqlite(url: str) -> str:
    """The ledger's URL, a relative path of an SQLite file made absolute."""
    scheme, separator, path = url.partition(":///")
    if scheme.partition("+")[0] != "sqlite" or not separator or not path or path.startswith(("/", "file:", ":memory:")):
        return url
    return f"{scheme}:///{Path(path).absolute()}"


def _python_on_path(scratch: Path) -> Path:
    """A folder in which `python` is this Python."""
    folder = Path(sys.executable).parent
    if shutil.which("python", path=str(folder)):
        return folder
    (scratch / "python").symlink_to(sys.executable)
    return scratch


def prefect_password(data: Path) -> str:
    """The password of a data folder's Prefect server, `NAME:SECRET`: made once, in a file that is its owner's alone.

    One that others could read or write is replaced. Raises `ServeError` where the file cannot be read or written.
    """
    path = data / PASSWORD
    try:
        data.mkdir(parents=True, exist_ok=True)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as file:  # noqa: PTH123 - of a descriptor
                status = os.fstat(file.fileno())
                password = file.read().strip()
            private = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
            if private and len(password) >= 24 and password.isascii() and password.isprintable():
                return password
            path.unlink()
        except FileNotFoundError:
            pass
        password = f"reasoning:{secrets.token_urlsafe(32)}"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(password + "\n")
    except FileExistsError:  # two commands at once: the other one made it
        return prefect_password(data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ServeError(f"cannot use {path} for Prefect's password ({reason}); delete it and start again") from error
    return password


def basic_authorization(password: str) -> str:
    """The header `Authorization` that Prefect's server takes."""
    return f"Basic {base64.b64encode(password.encode()).decode()}"


def _pool_is_ready(prefect: str, password: str) -> bool:
    url = f"{prefect}/api/work_pools/{WORK_POOL}"
    request = urllib.request.Request(url, headers={"Authorization": basic_authorization(password)})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310
            return bool(json.load(response)["status"] == "READY")
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def only_one(data: Path) -> Iterator[Held]:
    """Hold the data folder's serve lock, among all hosts that share the folder.

    Raises `ServeError` where it is no folder, or another one holds it, and `DataFolderError` on a volume whose locks
    are not to be trusted.
    """
    if data.exists() and not data.is_dir():
        raise ServeError(f"{data} is not a folder. Choose another: --data FOLDER")
    layout = Layout(data)
    try:
        make_folder(data)
        os.close(open_private(layout.serve_lock, os.O_RDWR | os.O_CREAT))
    except OSError as error:
        raise ServeError(
            f"cannot write to the data folder {data} ({error.strerror}). Choose another: --data FOLDER"
        ) from error
    with ExitStack() as stack:
        try:
            held = stack.enter_context(file_lock(layout, layout.serve_lock, "serve", timeout=0))
        except DataFolderBusy as error:
            raise ServeError(
                f"{data} is served already (`reasoning status` shows where). Stop that one, or serve another folder: "
                f"--data FOLDER ({error})"
            ) from None
        yield held


def served(data: Path) -> dict[str, Any]:
    """URLs (`prefect`, `gateway`, `emulator`) and `pid` of the `reasoning serve` that is up for this folder, else {}.

    What a dead one left behind does not count: its lock went with it. Nor does one of another host or container, whose
    127.0.0.1 is not ours.
    """
    path = Layout(data).serve_lock
    try:
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                told = dict(json.loads(lock.read() or "{}"))
                return told if told.get("network") == _network(data) else {}
    except (OSError, ValueError):
        pass
    return {}


def _network(data: Path) -> str:
    """Whose 127.0.0.1 it is: that of this host, and of this container."""
    try:
        space = os.readlink("/proc/self/ns/net")  # noqa: PTH115 - no file that there is
    except OSError:
        space = ""
    return f"{host_tag(data)} {space}"


def check_served(lock: Held) -> None:
    """Raise `ServeError` where another host serves the folder by now: it took this one for dead."""
    if lock.lost:
        raise ServeError(
            f"this `reasoning serve` was suspended, or its lock file was deleted ({lock.lost}): it ends, because two "
            "of one folder would both spend. `reasoning status` shows what runs"
        )
