"""A chat server that costs next to nothing: one canned completion over bare sockets. For the client's benchmarks.

Run as a process of its own; it prints its port.
"""

from __future__ import annotations

import json
import socket
import threading

COMPLETION = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "<response><action>RESPOND</action></response>"},
                "logprobs": {
                    "tokens": ["<response><action>", "RESPOND", "</action></response>"],
                    "token_logprobs": [-0.01, -0.2, -0.01],
                    "token_ids": [1, 2, 3],
                },
            }
        ],
        "usage": {"prompt_tokens": 700, "completion_tokens": 12, "total_tokens": 712},
    }
).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(COMPLETION),
    COMPLETION,
)


def serve(connection: socket.socket) -> None:
    """Answer every request of a connection, whatever it asks."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    rest = b""
    while True:
        while b"\r\n\r\n" not in rest:
            got = connection.recv(65536)
            if not got:
                return
            rest += got
        head, _, rest = rest.partition(b"\r\n\r\n")
        lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0]) if lengths else 0
        while len(rest) < length:
            rest += connection.recv(65536)
        rest = rest[length:]
        connection.sendall(RESPONSE)


def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
