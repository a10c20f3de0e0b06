"""The page's process (`gateway.pages.worker`): questions on stdin, answers on stdout, until stdin ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import orjson

from console.app import respond


def main() -> None:
    """Answer until the gateway closes the pipe, or is gone."""
    data = Path(sys.argv[1])
    os.nice(10)  # agents come first
    os.umask(0o077)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    questions = sys.stdin.buffer
    while len(head := questions.read(8)) == 8:
        question = orjson.loads(questions.read(int.from_bytes(head, "big")))
        answer = orjson.dumps(respond(data, question))
        answers.write(len(answer).to_bytes(8, "big") + answer)
        answers.flush()


if __name__ == "__main__":
    main()
