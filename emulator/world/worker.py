"""One training in a process of its own: `python -m emulator.world.worker`, started by `emulator.world.scheduler`.

It reads one JSON object from stdin (trainer, train, validation, output, n_epochs, fault) and writes one JSON object a
line: `{"progress": 0..1, "metrics": {...}}` while it trains, then `{"done": true}` or
`{"error": text, "user_error": bool}`.
When its stdin closes, the emulator is gone, and it ends as well.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from emulator.world.serving import TRAINER_FILE, TRAINERS
from learners.errors import DatasetError, TrainingError


def main() -> int:
    # What a trainer prints must not mix with the protocol.
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_emulator, daemon=True).start()
    try:
        _train(order, protocol)
    except DatasetError as error:
        _say(protocol, error=str(error), user_error=True)
        return 1
    except Exception as error:
        _say(protocol, error=f"{type(error).__name__}: {error}", user_error=False)
        return 1
    _say(protocol, done=True)
    return 0


def _train(order: dict[str, Any], protocol: TextIO) -> None:
    output = Path(order["output"])
    output.mkdir(parents=True, exist_ok=True)
    fault = order.get("fault") or {}

    def progress(fraction: float, metrics: dict[str, Any]) -> None:
        _say(protocol, progress=fraction, metrics={k: v for k, v in metrics.items() if isinstance(v, int | float)})
        _strike(fault)

    module, options = TRAINERS[order["trainer"]]
    trainer = importlib.import_module(module)
    validation = Path(order["validation"]) if order.get("validation") else None
    trainer.train(Path(order["train"]), validation, output, n_epochs=order["n_epochs"], progress=progress, **options)
    (output / TRAINER_FILE).write_text(json.dumps({"trainer": order["trainer"]}))


def _strike(fault: dict[str, Any]) -> None:
    match fault.get("kind"):
        case "training_slow":
            time.sleep(float(fault.get("seconds", 1.0)))
        case "training_error":
            raise TrainingError(str(fault.get("message", "ordered fault: the training failed")))
        case "training_user_error":
            raise DatasetError(str(fault.get("message", "ordered fault: the dataset cannot be trained on")))
        case "training_crash":
            os.kill(os.getpid(), signal.SIGKILL)


def _say(protocol: TextIO, **message: Any) -> None:
    protocol.write(json.dumps(message) + "\n")
    protocol.flush()


def _end_with_the_emulator() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
