"""`python -m gateway --data DIR --port N`: serve the gateway on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

import uvicorn

from gateway.app import create_app


def main() -> None:
    parser = argparse.ArgumentParser(prog="gateway", description=__doc__)
    parser.add_argument("--data", type=Path, help="the data folder (default: as configured)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    options = parser.parse_args()
    uvicorn.run(create_app(options.data), host=options.host, port=options.port, log_level="info")


if __name__ == "__main__":
    main()
