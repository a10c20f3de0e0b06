"""Errors of the emulator.

::

    EmulatorError              (stands alone: this package imports none of the others)
    ├── StartError             the emulator cannot start: port in use, data folder in use, unreadable catalog
    └── ApiError               an answer with a status >= 400; knows both of Together's body shapes
"""

from __future__ import annotations

from typing import Any


class EmulatorError(Exception):
    """Base of every error that the emulator raises on purpose."""


class StartError(EmulatorError):
    """The emulator cannot start."""


class ApiError(EmulatorError):
    """A refused request.

    Under `/v2` and `/v3` it is written `{code, message, details: [{detail}]}` with a gRPC status number, everywhere
    else `{"error": {message, type, param, code}}`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        headers: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind or _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.headers = headers or {}
        self.extra = extra or {}

    def body(self, path: str) -> dict[str, Any]:
        """The JSON body for a request to `path`."""
        if path.startswith(("/v2/", "/v3/")):
            details = [{"detail": self.code}] if self.code else []
            return {"code": _GRPC_CODES.get(self.status, 13), "message": self.message, "details": details, **self.extra}
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error, **self.extra}


_KINDS = {401: "authentication_error", 402: "insufficient_balance", 404: "not_found_error", 429: "rate_limit_error"}

# google.rpc.Code, which the v2 bodies carry as `code`.
_GRPC_CODES = {400: 3, 401: 16, 402: 9, 403: 7, 404: 5, 409: 10, 412: 9, 429: 8, 501: 12, 503: 14, 504: 4, 507: 8}
