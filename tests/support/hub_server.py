"""A hub on this machine: what reading a data set or a model, and committing files, need of the Hugging Face hub."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_COMMIT = "0" * 40
_LARGE = (".safetensors", ".parquet")
TOKEN = "hf_secret"  # with which everything may be written


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

    def do_POST(self) -> None:
        """Create a repository, check a card, say how files are sent, take large files, commit."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = self.path.partition("?")[0].strip("/").split("/")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json(401, {"error": "Invalid username or password."})
        elif path == ["api", "validate-yaml"]:
            self._json(200, {"warnings": []})
        elif path == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            (self.root / name).mkdir(parents=True, exist_ok=True)
            (self.root / f"{name}.created").write_bytes(body)
            kind = "datasets/" if asked.get("type") == "dataset" else ""
            self._json(200, {"url": f"http://{self.headers['Host']}/{kind}{name}"})
        elif path[-2:] == ["objects", "batch"]:
            objects = json.loads(body)["objects"]
            actions = {each["oid"]: f"http://{self.headers['Host']}/large/{each['oid']}" for each in objects}
            found = [{**each, "actions": {"upload": {"href": actions[each["oid"]]}}} for each in objects]
            self._json(200, {"transfer": "basic", "objects": found})
        elif path[4] == "preupload":
            files = json.loads(body)["files"]
            modes = {each["path"]: "lfs" if each["path"].endswith(_LARGE) else "regular" for each in files}
            self._json(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        else:
            self._commit(self.root / path[2] / path[3], [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        """A large file's content."""
        folder = self.root / "large"
        folder.mkdir(exist_ok=True)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        (folder / self.path.rpartition("/")[2]).write_bytes(content)
        self._send(200, b"", "text/plain", "")

    def _commit(self, folder: Path, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "header":
                continue
            target = folder / line["value"]["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                target.write_bytes(base64.b64decode(line["value"]["content"]))
            else:
                target.write_bytes((self.root / "large" / line["value"]["oid"]).read_bytes())
        address = f"http://{self.headers['Host']}/{'/'.join(folder.parts[-2:])}/commit/{_COMMIT}"
        self._json(200, {"success": True, "commitUrl": address, "commitOid": _COMMIT, "hookOutput": ""})

    def _json(self, status: int, body: object) -> None:
        self._send(status, json.dumps(body).encode(), "application/json", "")

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
        if self.command != "HEAD":
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
