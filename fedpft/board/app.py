"""The board's pages over HTTP: each as a whole, and under `/live` what changes on it, as server-sent events.

    /  /compare  /sweeps  /sweep/KEY  /run/KEY     a page, as its query chooses
    /cluster  /job/KEY                             with a cluster, its jobs and one of them
    /live/...                                      the same address: `change` events with the parts that differ
    /assets/NAME                                   styles and programs, of this package and of plotly

No address holds a path, so none leads out of the board's folders: keys are looked up among what was found there.
"""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fedpft.board.access import Access
from fedpft.board.index import Index
from fedpft.board.views.address import view_of
from fedpft.board.views.choice import Choice
from fedpft.board.views.page import Page, digest, nav, wrapped
from fedpft.report.html import note

ASSETS = {
    "page.css": ("fedpft.report", "page.css"),
    "page.js": ("fedpft.report", "page.js"),
    "board.css": ("fedpft.board", "assets/board.css"),
    "board.js": ("fedpft.board", "assets/board.js"),
}
"""Name in an address -> package and file."""
_TYPES = {"css": "text/css", "js": "text/javascript"}
_FIRST_SECONDS, _STEP_SECONDS = 0.3, 0.4
"""For reading, before a page is sent and at each step of a live one."""
_PAUSE_SECONDS = 1.0
_SHARE, _LONGEST_SECONDS = 3, 10.0
"""A live page rests so many times as long as making it took, but not longer than this."""
_BLINK_SECONDS = 0.2
"""Between two looks whether the server is closing."""
_SILENCE_SECONDS = 15.0
"""After which a line shows that the connection still works."""


def make_app(index: Index, token: str | None = None, is_closing: Callable[[], bool] = lambda: False) -> Starlette:
    """Return the board of an index.

    Args:
        index: what it shows.
        token: see :class:`Access`.
        is_closing: whether live pages are to end, so that the server can.

    """

    async def page(request: Request) -> Response:
        made = await run_in_threadpool(_make, index, request.url.path, _pairs(request), _FIRST_SECONDS)
        if made.page is None:
            return PlainTextResponse("nothing is here\n", 404)
        return HTMLResponse(made.page.html(_nav(index, made.page), index.now, _version()))

    async def live(request: Request) -> Response:
        path, pairs = "/" + request.path_params["path"], _pairs(request)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        events = _events(index, path, pairs, request.query_params.get("have", ""), is_closing)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    routes = [
        *(Route(path, page) for path in ("/", "/compare", "/sweeps", "/sweep/{key}", "/run/{key}")),
        *(Route(path, page) for path in ("/cluster", "/job/{key}") if index.cluster),
        Route("/live/{path:path}", live),
        Route("/assets/{name}", _asset),
    ]
    return Starlette(
        routes=routes, middleware=[Middleware(Access, token=token), Middleware(GZipMiddleware, minimum_size=1000)]
    )


@dataclass(frozen=True)
class _Made:
    """What came of looking at an address."""

    version: int = -1
    """Of what the page shows; -1: there is no such page."""
    page: Page | None = None
    """None: nothing is new."""
    rest_seconds: float = 0.0
    """How long to leave it alone now."""


def _make(index: Index, path: str, pairs: Sequence[tuple[str, str]], seconds: float, version: int = -1) -> _Made:
    """Return the page of an address as it is now, unless what it shows still has a version.

    Reads for so many seconds at most, first of all what the page shows.
    """
    with index.lock:
        index.look()
        start, now = time.monotonic(), 0
        try:
            view = view_of(index, path, Choice.of(pairs))
            if view is None:
                return _Made()
            least = _PAUSE_SECONDS if index.read(seconds, view.runs) else _BLINK_SECONDS
            start = time.monotonic()
            now = index.version + (view.cluster.version if view.cluster else 0)
            page = None if now == version else view.make()
        except Exception as error:  # files may hold anything; the board goes on and says so
            said = note(f"This page cannot be made of what the files hold: {type(error).__name__}: {error}")
            least, page = _PAUSE_SECONDS, Page(title="Board", parts={"report": wrapped("report", said)})
        rest = min(_LONGEST_SECONDS, max(least, _SHARE * (time.monotonic() - start)))
        return _Made(now, page, rest)


async def _events(
    index: Index,
    path: str,
    pairs: Sequence[tuple[str, str]],
    have: str,
    is_closing: Callable[[], bool] = lambda: False,
) -> AsyncIterator[str]:
    sent: dict[str, str] | None = None
    order: list[str] = []
    version, spoken = -1, time.monotonic()
    yield "retry: 2000\n\n"
    while not is_closing():
        made = await run_in_threadpool(_make, index, path, pairs, _STEP_SECONDS, version)
        version = made.version
        if made.page is not None:
            parts, rows = made.page.all, list(made.page.rows)
            if sent is None and made.page.hash == have:
                sent, order = parts, rows
            changed = {key: html for key, html in parts.items() if sent is None or sent.get(key) != html}
            if changed or rows != order:
                yield f"event: change\ndata: {json.dumps({'parts': changed, 'order': rows})}\n\n"
                spoken = time.monotonic()
            sent, order = parts, rows
        elif version < 0:
            yield "event: gone\ndata: {}\n\n"
            return
        if time.monotonic() - spoken > _SILENCE_SECONDS:
            yield ": still here\n\n"
            spoken = time.monotonic()
        end = time.monotonic() + made.rest_seconds
        while time.monotonic() < end and not is_closing():
            await asyncio.sleep(_BLINK_SECONDS)


def _pairs(request: Request) -> list[tuple[str, str]]:
    return list(request.query_params.multi_items())


def _nav(index: Index, page: Page) -> str:
    links = [("/", "Runs"), ("/compare", "Comparison")]
    if index.sweeps:
        links.append(("/sweeps", "Sweeps"))
    if index.cluster:
        links.append(("/cluster", "Cluster"))
    return nav(page.title, links)


async def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    content = await run_in_threadpool(_packed, name) if name in (*ASSETS, "plotly.js") else None
    if content is None:
        return PlainTextResponse("nothing is here\n", 404)
    headers = {"cache-control": "private, max-age=31536000, immutable"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
    else:
        content = gzip.decompress(content)
    return Response(content, media_type=_TYPES[name.rpartition(".")[2]], headers=headers)


@cache
def _packed(name: str) -> bytes:
    if name == "plotly.js":
        from plotly.offline import get_plotlyjs

        return gzip.compress(get_plotlyjs().encode(), 6)
    package, file = ASSETS[name]
    return gzip.compress((files(package) / file).read_bytes())


@cache
def _version() -> str:
    """Return what changes with any asset, so that browsers keep them until then."""
    import plotly

    texts = [(files(package) / file).read_text(encoding="utf-8") for package, file in ASSETS.values()]
    return digest("".join([plotly.__version__, *texts]))
