"""What every request must pass: a known host, no other site behind it, and the token; and headers of every response.

A page of another site can make a browser send requests to this server. Names that resolve to this machine (DNS
rebinding) are refused by the Host header, requests of other sites by Sec-Fetch-Site and Origin, and everything without
the token, which the first address carries and a cookie keeps.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HOST = re.compile(r"(?:\[(?P<v6>[\da-fA-F:.]+)\]|(?P<name>[\w.-]+))(?::\d{1,5})?", re.ASCII)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none, a browser's own forms have the Origin "null"
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Guard:
    """ASGI middleware. ``hosts``: names served besides localhost and IP addresses; None: no ``token``."""

    app: ASGIApp
    token: str | None
    hosts: frozenset[str] = frozenset()

    @property
    def cookie(self) -> str:
        """The cookie's name, one for each token: browsers share cookies among the ports of a host."""
        return f"metareward_view_{hashlib.sha256((self.token or '').encode()).hexdigest()[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        request = Request(scope)
        refusal = self._refusal(request) or self._without_token(request)
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        headers = request.headers
        if not self._is_ours(headers.get("host", "")):
            return _refused("this host name isn't served here; fix: use the printed address, or --allow-host NAME")
        site, reads = headers.get("sec-fetch-site"), request.method in ("GET", "HEAD")
        if reads:
            opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            foreign = site in ("cross-site", "same-site") and not opened
        else:
            origin = headers.get("origin")
            foreign = site not in (None, "same-origin") or not (site or origin)
            foreign |= origin is not None and urlsplit(origin).netloc != headers.get("host", "")
        return _refused("requests of other sites are refused") if foreign else None

    def _is_ours(self, host: str) -> bool:
        """IP addresses can't be rebound, names can."""
        found = _HOST.fullmatch(host)
        name = (found["v6"] or found["name"]).lower() if found else ""
        if name == "localhost" or name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _without_token(self, request: Request) -> Response | None:
        if self.token is None:
            return None
        given = parse_qs(request.url.query).get("token", [""])[0]
        if _equal(given, self.token) and request.method == "GET":
            rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
            address = request.url.path + (f"?{urlencode(rest)}" if rest else "")
            response = RedirectResponse(_local(address), status_code=303)
            response.set_cookie(self.cookie, self.token, httponly=True, samesite="lax", path="/")
            return response
        if _equal(request.cookies.get(self.cookie, ""), self.token):
            return None
        return _refused("the token is missing or wrong; fix: open the address that `metareward view` printed", 401)


def _local(address: str) -> str:
    """A path of this server: "//name" would be another one."""
    return "/" + address.lstrip("/\\")


def _equal(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _refused(why: str, status: int = 403) -> Response:
    return PlainTextResponse(f"metareward view: {why}\n", status_code=status)
