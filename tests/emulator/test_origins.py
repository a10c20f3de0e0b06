"""No web page may use the emulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulator.conftest import Server, start

ROUTES = [("GET", "/emulator/bill"), ("POST", "/emulator/faults"), ("GET", "/v1/files"), ("PUT", "/blobs/file-x")]


def _ask(server: Server, method: str, path: str, **headers: str) -> int:
    return server.http.request(method, path, content=b"[]", headers=headers).status_code


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another server of this machine
        {"Host": "evil.example"},
        {"Host": "evil.example:80", "Origin": "http://evil.example:80"},  # DNS rebinding
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
    ],
)
def test_a_foreign_page_is_refused_everywhere(server: Server, method: str, path: str, headers: dict[str, str]) -> None:
    assert _ask(server, method, path, **headers) == 403


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_programs_and_a_page_of_its_own_are_served(server: Server, name: str) -> None:
    port = server.url.rpartition(":")[2]
    assert _ask(server, "GET", "/emulator/bill", Host=f"{name}:{port}") == 200
    assert _ask(server, "GET", "/emulator/bill", Host=f"{name}:{port}", Origin=f"http://{name}:{port}") == 200


def test_another_name_is_served_where_it_is_allowed(tmp_path: Path) -> None:
    for server in start(tmp_path / "data", "--trainer", "majority", "--allow-host", "emulator"):
        assert _ask(server, "GET", "/emulator/bill", Host="emulator:8002") == 200
        assert _ask(server, "GET", "/emulator/bill", Host="evil.example") == 403
