"""One request for chat completions, as it is sent: the same conversation, sampling and number give the same bytes.

``seed`` on the wire has 31 bits, as some servers read it as a signed 32-bit number. Request ``i`` for one choice has a
seed of its own, and the request for all choices has that of choice 0.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from metareward.engines.endpoint_words import first_words
from metareward.seeds import derive
from metareward.types import Messages, Sampling

_SEED_BITS_TO_DROP = 63 - 31
# The limit of OpenAI's protocol.
_MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The body of a request for ``n`` choices, and the first words of its prompt (one line, quoted)."""

    body: bytes
    n: int
    top_logprobs: int
    words: str

    @property
    def digest(self) -> str:
        """SHA-256 of the body: model, messages, sampling, seed and ``n``; neither the server nor the key."""
        return hashlib.sha256(self.body).hexdigest()

    @property
    def name(self) -> str:
        """What error lines call it."""
        return f"request {self.digest[:8]} ({self.words})"


def chat_request(model: str, messages: Messages, sampling: Sampling, n: int, first: int = 0) -> ChatRequest:
    """The request for the ``n`` choices from number ``first`` on."""
    fields: dict[str, object] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "n": n,
        "seed": derive(sampling.seed, first) >> _SEED_BITS_TO_DROP,
    }
    if sampling.top_logprobs:
        # One more, as vLLM counts the token that was drawn among them, in the place of the last.
        asked = max(sampling.top_logprobs, min(sampling.top_logprobs + 1, _MAX_TOP_LOGPROBS))
        fields |= {"logprobs": True, "top_logprobs": asked}
    return ChatRequest(json.dumps(fields).encode(), n, sampling.top_logprobs, first_words(messages))
