"""What `gateway.server` uses of uvicorn beyond its documentation: an update that changes it fails here, by name."""

from __future__ import annotations

import ast
import inspect
import signal
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway import server
from gateway.server import Server, StrictProtocol

# Methods that the gateway overrides, with their parameters.
OVERRIDDEN = {
    HttpToolsProtocol: {
        "connection_made": ["transport"],
        "data_received": ["data"],
        "pause_writing": [],
        "resume_writing": [],
        "on_message_begin": [],
        "on_header": ["name", "value"],
        "on_headers_complete": [],
        "on_body": ["body"],
        "on_message_complete": [],
        "_unsupported_upgrade_warning": [],
    },
    uvicorn.Server: {"on_tick": ["counter"], "handle_exit": ["sig", "frame"], "startup": ["sockets"]},
}
# Attributes that it reads or sets, by the class that makes them.
ATTRIBUTES = {
    HttpToolsProtocol: {"cycle", "flow", "headers", "loop", "parser", "scope", "transport", "url"},
    RequestResponseCycle: {
        *("chunked_encoding", "expected_content_length", "response_complete", "response_started", "scope"),
    },
    uvicorn.Server: {"_captured_signals", "server_state", "should_exit"},
}


@pytest.mark.parametrize("base", OVERRIDDEN)
def test_the_methods_that_are_overridden_are_uvicorns(base: type) -> None:
    for name, parameters in OVERRIDDEN[base].items():
        found = list(inspect.signature(getattr(base, name)).parameters)
        assert found == ["self", *parameters], name


@pytest.mark.parametrize("base", ATTRIBUTES)
def test_the_attributes_that_are_used_are_uvicorns(base: type) -> None:
    made = set()
    for node in ast.walk(ast.parse(inspect.getsource(base))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            made.add(node.attr)
    assert ATTRIBUTES[base] <= made


def test_uvicorn_calls_what_is_overridden() -> None:
    source = inspect.getsource(HttpToolsProtocol)
    assert "self._unsupported_upgrade_warning()" in source
    assert "except httptools.HttpParserUpgrade" in source  # while it is handled, the upgrade is `sys.exc_info()`
    assert hasattr(FlowControl(MagicMock()), "read_paused")
    assert "await self.on_tick(" in inspect.getsource(uvicorn.Server.main_loop)
    assert "handle_exit" in inspect.getsource(uvicorn.Server.capture_signals)
    assert "_captured_signals" in inspect.getsource(uvicorn.Server.capture_signals)
    assert signal.SIGTERM in uvicorn.server.HANDLED_SIGNALS


def test_no_other_private_name_of_uvicorn_is_used() -> None:
    """Every private method of the gateway's subclasses that uvicorn has too is listed above."""
    private = {HttpToolsProtocol: StrictProtocol, uvicorn.Server: Server}
    for base, ours in private.items():
        shared = {
            name for name in vars(ours) if name.startswith("_") and not name.startswith("__") and hasattr(base, name)
        }
        assert shared <= OVERRIDDEN[base].keys()
    used = {
        node.attr
        for node in ast.walk(ast.parse(Path(server.__file__).read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and ast.unparse(node.value) == "self"
    }
    uvicorns = {
        node.attr
        for base in (HttpToolsProtocol, uvicorn.Server)
        for node in ast.walk(ast.parse(inspect.getsource(base)))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and ast.unparse(node.value) == "self"
    }
    assert used & uvicorns == {"_captured_signals"}
