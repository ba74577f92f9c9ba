"""A hub on this machine: the three answers of the Hugging Face hub that reading a data set or a model needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Serves the folders ROOT/OWNER/NAME as data sets and as models; a model's licence is apache-2.0."""

    def __init__(self, root: Path, *given: object) -> None:
        self.root = root
        super().__init__(*given)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        if path[0] == "api":
            self._about("/".join(path[2:4]), path[4] if len(path) > 4 else "")
        else:
            path = path[1:] if path[0] == "datasets" else path
            self._file("/".join(path[:2]), "/".join(path[4:]))

    do_HEAD = do_GET

    def _about(self, name: str, what: str) -> None:
        folder = self.root / name
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        listed = [
            {
                "type": "file",
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size,
                "oid": _digest(path),
            }
            for path in files
        ]
        siblings = [{"rfilename": each["path"]} for each in listed]
        body = (
            listed
            if what == "tree"
            else {
                "id": name,
                "sha": _COMMIT,
                "siblings": siblings,
                "cardData": {"license": "apache-2.0"},
            }
        )
        if files:
            self._send(200, json.dumps(body).encode(), "application/json", "")
        else:
            self._nothing()

    def _file(self, name: str, file: str) -> None:
        path = self.root / name / file
        if path.is_file():
            self._send(200, path.read_bytes(), "application/octet-stream", _digest(path))
        else:
            self._nothing()

    def _nothing(self) -> None:
        self._send(404, b"{}", "application/json", "")

    def _send(self, status: int, body: bytes, kind: str, tag: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{tag}"')
        self.send_header("X-Repo-Commit", _COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serve_hub(root: Path) -> Iterator[str]:
    """The address of the hub, as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
