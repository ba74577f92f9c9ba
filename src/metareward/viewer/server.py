"""The web server of `metareward view`: routes, and the process that serves them."""

from __future__ import annotations

import secrets
import socket
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from metareward.errors import UserError
from metareward.viewer.annotations import exported_pairs
from metareward.viewer.export import exported
from metareward.viewer.guard import Guard
from metareward.viewer.judging import JudgeQuery, JudgingPages
from metareward.viewer.models import CompareQuery, HeldOutQuery, ModelPages
from metareward.viewer.pages import Pages, css, html, version, warm_up
from metareward.viewer.runs import ViewedRun, Watcher
from metareward.viewer.selection import Selection, whole_number

_LONGEST_FORM = 20_000


@dataclass(frozen=True, slots=True)
class Site:
    """The handlers of requests, each a function of the request; they run in threads."""

    runs: Sequence[ViewedRun]
    person: str

    @property
    def pages(self) -> Pages:
        """The pages with links."""
        return Pages(self.runs)

    def overview(self, _: Request) -> Response:
        """All runs."""
        return HTMLResponse(self.pages.overview())

    def one_run(self, request: Request) -> Response:
        """One run: its overview alone."""
        return HTMLResponse(Pages([self._run(request)]).overview())

    def prompts(self, request: Request) -> Response:
        """The list of an iteration's prompts."""
        return HTMLResponse(self.pages.prompts(self._run(request), Selection.parse(request.url.query)))

    def prompt(self, request: Request) -> Response:
        """One prompt."""
        selection = Selection.parse(request.url.query)
        return HTMLResponse(self.pages.prompt(self._run(request), selection.t, _parameter(request, "id"), selection))

    def text(self, request: Request) -> Response:
        """One whole text."""
        t, key, what = Selection.parse(request.url.query).t, _parameter(request, "id"), _parameter(request, "what")
        return HTMLResponse(self.pages.text(self._run(request), t, key, what))

    def held_out_list(self, request: Request) -> Response:
        """The list of the held-out prompts."""
        run = self._run(request)
        return HTMLResponse(self._models.listing(run, HeldOutQuery.parse(request.url.query)))

    def held_out(self, request: Request) -> Response:
        """One held-out prompt, all models side by side."""
        return HTMLResponse(self._models.prompt(self._run(request), _parameter(request, "id")))

    def compare(self, request: Request) -> Response:
        """Two models, of one run or two, on the same prompts."""
        return HTMLResponse(self._models.compare(CompareQuery.parse(request.url.query)))

    def side_by_side(self, request: Request) -> Response:
        """The two models' answers to one prompt."""
        query = CompareQuery.parse(request.url.query)
        if query.a is None or query.b is None:
            raise UserError("the address names no two models; fix: follow a link of the comparison")
        return HTMLResponse(self._models.side_by_side(query, _parameter(request, "id")))

    def export(self, request: Request) -> Response:
        """A selection, or one prompt, as one file."""
        run, selection = self._run(request), Selection.parse(request.url.query)
        key = dict(parse_qsl(request.url.query)).get("id")
        text = exported(run, selection, () if key is None else (key,))
        name = f"{run.number}-iteration-{selection.t}.html"
        return HTMLResponse(text, headers={"Content-Disposition": f'attachment; filename="metareward-{name}"'})

    def judge(self, request: Request) -> Response:
        """A pair for a person to judge."""
        return HTMLResponse(self._judging.judge(self._run(request), JudgeQuery.parse(request.url.query)))

    async def store(self, request: Request) -> Response:
        """Store a person's judgment: the fields of the form, then of the address, which decide."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LONGEST_FORM:
                raise UserError("the form is too long")
        form = f"{body.decode('ascii', 'replace')}&{request.url.query}"
        after = await run_in_threadpool(self._judging.store, self._run(request), form)
        return RedirectResponse(after, status_code=303)

    def judged(self, request: Request) -> Response:
        """What people judged, and the agreement."""
        return HTMLResponse(self._judging.judged(self._run(request)))

    def judged_pairs(self, request: Request) -> Response:
        """The judged pairs as a file."""
        text = exported_pairs(self._run(request), Selection.parse(request.url.query).kind)
        headers = {"Content-Disposition": 'attachment; filename="judged-pairs.jsonl"'}
        return Response(text.encode("utf-8", "replace"), media_type="application/jsonl", headers=headers)

    @property
    def _judging(self) -> JudgingPages:
        return JudgingPages(self.pages, self.person)

    @property
    def _models(self) -> ModelPages:
        return ModelPages(self.pages)

    def state(self, _: Request) -> Response:
        """A text that changes whenever a run does."""
        return PlainTextResponse(version(self.runs))

    def style(self, _: Request) -> Response:
        """The style sheet."""
        return Response(css(), media_type="text/css")

    def script(self, _: Request) -> Response:
        """The script."""
        return Response(html("viewer.js"), media_type="text/javascript")

    def _run(self, request: Request) -> ViewedRun:
        number = whole_number("run", request.path_params["run"])
        if number >= len(self.runs):
            raise UserError(f"there is no run number {number} here")
        return self.runs[number]


def _parameter(request: Request, name: str) -> str:
    value = dict(parse_qsl(request.url.query)).get(name)
    if value is None:
        raise UserError(f"the address has no {name}; fix: follow a link of the list")
    return value


def application(
    runs: Sequence[ViewedRun], token: str | None, hosts: frozenset[str] = frozenset(), person: str = ""
) -> Guard:
    """The ASGI application behind its guard; while it runs, a thread keeps the index up to date.

    ``person``: whose judgments are stored.
    """
    site = Site(runs, person)
    hosts = frozenset(map(str.lower, hosts))  # browsers send host names in lower case

    def problem(_: Request, error: Exception) -> Response:
        """A problem of the run or the address as a page with one line."""
        return HTMLResponse(site.pages.message("This can't be shown", " ".join(str(error).split())), status_code=404)

    @asynccontextmanager
    async def watched(_: Starlette) -> AsyncIterator[None]:
        for run in runs:
            run.begin()
        watcher = Watcher(runs)
        watcher.start()
        try:
            yield
        finally:
            watcher.stop()

    routes = [
        Route("/", site.overview),
        Route("/run/{run}", site.one_run),
        Route("/run/{run}/prompts", site.prompts),
        Route("/run/{run}/prompt", site.prompt),
        Route("/run/{run}/text", site.text),
        Route("/run/{run}/held-out", site.held_out_list),
        Route("/run/{run}/held-out/prompt", site.held_out),
        Route("/run/{run}/export", site.export),
        Route("/run/{run}/judge", site.judge),
        Route("/run/{run}/judge", site.store, methods=["POST"]),
        Route("/run/{run}/judged", site.judged),
        Route("/run/{run}/judged/pairs.jsonl", site.judged_pairs),
        Route("/compare", site.compare),
        Route("/compare/prompt", site.side_by_side),
        Route("/state", site.state),
        Route("/static/viewer.css", site.style),
        Route("/static/viewer.js", site.script),
        Route("/favicon.ico", lambda _: Response(status_code=204)),
    ]
    handlers = {UserError: problem, sqlite3.Error: problem, OSError: problem}
    return Guard(Starlette(routes=routes, exception_handlers=handlers, lifespan=watched), token, hosts)


def serve(runs: Sequence[ViewedRun], host: str, port: int, token: bool, hosts: Sequence[str], person: str) -> None:
    """Serve until Ctrl-C, printing the address. Raises `UserError` for an address that can't be had."""
    secret = secrets.token_urlsafe(24) if token else None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # before the address is printed, so that it can be opened at once
    except OSError as error:
        raise UserError(f"{host}:{port}: {error.strerror or error}; fix: give another --port or --host") from None
    warm_up()
    actual = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{actual}/{f'?token={secret}' if secret else ''}", flush=True)
    app = application(runs, secret, frozenset(hosts), person)
    config = uvicorn.Config(app, log_level="warning", server_header=False, date_header=False)
    with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        uvicorn.Server(config).run(sockets=[listening])
