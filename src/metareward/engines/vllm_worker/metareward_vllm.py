"""Another model's weights for vLLM's workers, and who may ask for them; imports nothing of metareward.

`WeightLoader` is mixed into vLLM's worker class (``--worker-extension-cls``), `Guard` is part of its server
(``--middleware``).
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TOKEN = "METAREWARD_VLLM_TOKEN"  # the environment variable with the token
HEADER = "x-metareward-token"
_OPEN = ("/v1/", "/health")
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class WeightLoader:
    """Reads the weights of another model of the same shape into the worker that this is part of."""

    def metareward_load(self, folder: str, digests: str) -> None:
        """Load the files of weights in ``folder``; ``digests``: their names and SHA-256, as a JSON object.

        Raises `ValueError` if what was read is not what the digests say.
        """
        worker: Any = self
        worker.reload_weights(weights_iterator=read_weights(folder, json.loads(digests)))
        # On a CPU vLLM multiplies by packed copies. That of a head that is tied to the embeddings it doesn't make anew.
        for layer in worker.model_runner.model.modules():
            if type(layer).__name__ == "ParallelLMHead" and hasattr(layer, "cpu_linear"):
                layer.quant_method.process_weights_after_loading(layer)


def read_weights(folder: str, digests: dict[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of safetensors files, as views of the very bytes whose digest is checked."""
    import torch

    for name, sha256 in sorted(digests.items()):
        path = Path(folder) / name
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"{path} is not the file that the run knows")
        begin = 8 + int.from_bytes(content[:8], "little")
        for key, each in json.loads(content[8:begin]).items():
            if key == "__metadata__":
                continue
            dtype, count = getattr(torch, _DTYPES[each["dtype"]]), math.prod(each["shape"])
            offset = begin + each["data_offsets"][0]
            values = torch.frombuffer(content, dtype=dtype, count=count, offset=offset) if count else torch.empty(0)
            yield key, values.reshape(each["shape"]).to(dtype)


_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Guard:
    """Leaves what isn't a completion to those who know the token: other users of the machine reach the port, too."""

    def __init__(self, app: Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        """Pass the request on, or answer 403."""
        given = dict(scope.get("headers", ())).get(HEADER.encode(), b"")
        known = secrets.compare_digest(given, os.environ[TOKEN].encode())
        if scope["type"] != "http" or known or scope["path"].startswith(_OPEN):
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": b""})
