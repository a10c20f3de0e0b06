"""`python -m gateway --data DIR --port N`: serve the gateway on this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gateway.app import create_app
from gateway.server import serve
from reasoning.errors import ReasoningError
from storage.files import private_umask


def main() -> None:
    """Run the gateway until a signal ends it."""
    parser = argparse.ArgumentParser(prog="gateway", description=__doc__)
    parser.add_argument("--data", type=Path, help="the data folder (default: as configured)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8001, help="0 for any free one (default: %(default)s)")
    options = parser.parse_args()
    private_umask()
    try:
        gateway = create_app(options.data)
    except ReasoningError as error:
        sys.exit(f"error: {error}")
    serve(gateway, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
