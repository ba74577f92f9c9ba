"""Stands in for vLLM's server where it has to misbehave; a test puts it where ``python -m`` looks for vLLM's.

``STAND_IN`` says how it starts: "refuse", "silent", "stranger" (serves another model) or well. Prompts say what it does
then: "die" and "hang" are done, others answered. Like vLLM it has a child that goes on when its parent has ended.

Its log-probabilities depend on the weights that it has. A folder's name says how weights are loaded from it: "deaf" is
not loaded, "failing" is an error, "stuck" leaves the prefix cache; others well.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MANNER = os.environ.get("STAND_IN", "")
loaded: dict[str, Any] = {"folder": "", "value": 1.0}


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


class Desk(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = "somebody else" if MANNER == "stranger" else option("--served-model-name")
        self.reply({"data": [{"id": name}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        if not self.path.startswith("/v1/"):
            self.control(self.path.strip("/"), body)
            return
        said = body["messages"][-1]["content"]
        if said == "die":
            time.sleep(0.5)
            print("(APIServer pid=7) ERROR 11-21 07:36:27 [core.py:1] RuntimeError: out of luck", flush=True)
            os._exit(3)
        if said == "hang":
            time.sleep(3600)
        token = {"token": said, "logprob": -loaded["value"], "top_logprobs": []}
        token["top_logprobs"] = [{"token": said, "logprob": -loaded["value"]}]
        choices = [
            {
                "index": i,
                "message": {"content": said if body.get("logprobs") else f"{said} {i}"},
                "finish_reason": "stop",
                "logprobs": {"content": [token]},
            }
            for i in range(body["n"])
        ]
        self.reply({"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": len(choices)}})

    def control(self, what: str, body: dict[str, Any]) -> None:
        if self.headers.get("x-metareward-token") != os.environ.get("METAREWARD_VLLM_TOKEN", "none"):
            self.reply({}, 403)
            return
        print("asked to", what, body.get("method", ""), flush=True)
        if what == "reset_prefix_cache":
            self.reply({"success": not str(loaded["folder"]).endswith("stuck")})
            return
        folder, digests = body["args"]
        loaded["folder"] = folder
        found = {name: hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest() for name in json.loads(digests)}
        if folder.endswith("failing") or found != json.loads(digests):
            self.reply({"error": "Call to collective_rpc method failed:\nit is broken"}, 500)
            return
        if not folder.endswith("deaf"):
            loaded["value"] = float(int(min(found.values())[:4], 16))
        self.reply({"results": [None]})

    def reply(self, body: dict[str, Any], status: int = 200) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def main() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    print("words", *sys.argv[1:], flush=True)
    print("processes", os.getpid(), child.pid, flush=True)
    if MANNER == "refuse":
        print("(APIServer pid=7) WARNING 11-21 07:36:27 [core.py:1] OSError: of no importance", flush=True)
        raise ValueError("no room for so long a context")
    if MANNER == "silent":
        time.sleep(3600)
    ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Desk).serve_forever()


if __name__ == "__main__":
    main()
