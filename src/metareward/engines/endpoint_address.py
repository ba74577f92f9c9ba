"""Where the servers are and what lets us in, as the user gave it, checked before anything is sent."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import httpx2

from metareward.engines.endpoint_words import one_line
from metareward.errors import UserError

_FIX = "fix: write it as http://127.0.0.1:8000"


def base_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """The servers' base URLs. Raises `UserError` if there is none, one is no URL, or one is there twice."""
    found = tuple(base_url(url) for url in urls)
    if not found:
        raise UserError("urls: there is none; fix: name a server, such as http://127.0.0.1:8000")
    twice = [url for url in found if found.count(url) > 1]
    if twice:
        raise UserError(f"urls: {twice[0]} is there twice; fix: name each server once")
    return found


def base_url(url: str) -> str:
    """``url`` with its version: ``/v1`` is added unless the path names one. Raises `UserError` if it is no such URL."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UserError(f"urls: {one_line(url)} is no URL ({error}); {_FIX}") from None
    if parsed.userinfo:
        raise UserError(f"urls: {parsed.host} comes with a password; fix: put it into key_variable's variable")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise UserError(f"urls: {one_line(url)} is no base URL; {_FIX}")
    path = parsed.path.rstrip("/")
    versioned = any(re.fullmatch(r"v\d\w*", part) for part in path.split("/"))
    return str(parsed.copy_with(path=path if versioned else f"{path}/v1"))


def api_key(variable: str | None) -> str | None:
    """The key in this environment variable. Raises `UserError`, which never shows it, if there is none to use."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"key_variable: the environment variable {variable} is not set; fix: put the API key into it")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"key_variable: {variable} holds characters that no API key has; fix: set it again")
    return key
