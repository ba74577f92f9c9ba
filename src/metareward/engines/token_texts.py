"""What each token adds to a text.

A token may hold a part of a character only, or a space that depends on what came before it. So a token's text is the
difference that it makes to the decoding of its few predecessors, and a character that several tokens make up belongs
to the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What an unfinished character decodes to.
_UNFINISHED = "\ufffd"


def token_texts(decode: Callable[[list[int]], str], ids: Sequence[int]) -> tuple[str, ...]:
    """One text to a token, together exactly ``decode(ids)``; the tokens' cost is linear in their number."""
    texts: list[str] = []
    # Tokens from `start` on are decoded again; those before `shown` are in the texts already.
    start = shown = 0
    for end in range(1, len(ids) + 1):
        before, now = decode(list(ids[start:shown])), decode(list(ids[start:end]))
        if now.endswith(_UNFINISHED) or not now.startswith(before):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, shown = shown, end
    return _completed(texts, decode(list(ids)))


def _completed(texts: list[str], whole: str) -> tuple[str, ...]:
    """The texts, with what is left of ``whole`` given to the last token."""
    joined = "".join(texts)
    if joined == whole or not texts:
        return tuple(texts)
    if whole.startswith(joined):
        return (*texts[:-1], texts[-1] + whole[len(joined) :])
    return (*("" for _ in texts[1:]), whole)
