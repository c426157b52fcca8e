"""An OpenAI-compatible endpoint that answers what a function says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Of a request; or a status and a body, and perhaps headers.
Answer = Callable[[dict[str, Any]], "str | tuple[int, str] | tuple[int, str, dict[str, str]]"]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The base URL of a server that lives as long as the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said = answer(
                json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                | {"key": self.headers.get("Authorization")}
            )
            status, body, *headers = said if isinstance(said, tuple) else (200, _completion(said))
            self.send_response(status)
            for name, value in headers[0].items() if headers else ():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def _completion(text: str) -> str:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
                       "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}})  # fmt: skip
