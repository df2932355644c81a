"""The HTTP door of a trained model: /recommend, /similar, /items, /health, /metrics, and one page to look at it.

One thread ranks; what arrives meanwhile waits and is ranked together. Needs fastapi and uvicorn, which nothing else
does. Shape letters: N items, P token places.
"""

import asyncio
import base64
import hashlib
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from compose import parts
from metrics import EvalOptions
from serve.loaded import Loaded
from sids.files import to_index
from utils import quoted

PAGE = Path(__file__).parent / "page.html"
PATHS = ("/", "/recommend", "/similar", "/items", "/health", "/metrics")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds
Ranked = list[tuple[int, float]]  # item numbers and scores, best first


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    k: int = 100
    history: int = 1000  # items of a history, of allow and of deny
    body: int = 1 << 16  # bytes
    waiting: int = 512  # requests that may wait to be ranked
    seconds: float = 10.0  # to send a body, and again to be ranked


class Question(BaseModel):
    """Body of /recommend: item ids, oldest first."""

    model_config = ConfigDict(extra="forbid", strict=True)
    history: list[str] = Field(min_length=1)
    k: int = Field(10, ge=1)
    allow: list[str] | None = None  # the only items that may come
    deny: list[str] = []


# ---------------------------------------------------------------- ranking, many at a time


@dataclass
class Waiting:
    """A request that waits for its list."""

    history: list[int]
    k: int
    allow: list[int] | None
    deny: list[int]
    answer: "asyncio.Future[Ranked]"


class Ranking:
    """One thread that ranks all that waits, in batches."""

    def __init__(self, loaded: Loaded, limits: Limits) -> None:
        self.loaded, self.limits, self.size = loaded, limits, loaded.cfg[EvalOptions].eval_batch_size
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue(limits.waiting)
        self.pool = ThreadPoolExecutor(1)
        self.batches: Counter[int] = Counter()  # by size

    async def ask(self, history: list[int], k: int, allow: list[int] | None, deny: list[int]) -> Ranked:
        """Item numbers and scores, best first; 503 when too many wait, 504 when it takes too long."""
        waiting = Waiting(history, k, allow, deny, asyncio.get_running_loop().create_future())
        try:
            self.queue.put_nowait(waiting)
        except asyncio.QueueFull:
            raise HTTPException(503, "too many requests wait; try again", {"Retry-After": "1"}) from None
        try:
            return await asyncio.wait_for(waiting.answer, self.limits.seconds)
        except TimeoutError:
            raise HTTPException(504, f"not ranked within {self.limits.seconds:g} s; try again later") from None

    async def run(self) -> None:
        """Rank until cancelled. While a batch is ranked the next one gathers."""
        while True:
            batch = [await self.queue.get()]
            while len(batch) < self.size and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            for group in self._alike([w for w in batch if not w.answer.done()]):
                self.batches[len(group)] += 1
                try:
                    lists = await asyncio.get_running_loop().run_in_executor(self.pool, self._rank, group)
                    answers: list[Any] = list(lists)
                except Exception as e:
                    answers = [e] * len(group)
                for waiting, answer in zip(group, answers, strict=True):
                    if waiting.answer.done():  # gave up meanwhile
                        continue
                    if isinstance(answer, Exception):
                        waiting.answer.set_exception(answer)
                    else:
                        waiting.answer.set_result(answer)

    def _alike(self, batch: list[Waiting]) -> list[list[Waiting]]:
        """Requests that can be ranked together: lists of one length, no items singled out."""
        groups: dict[Any, list[Waiting]] = {}
        for w in batch:
            lone = w.allow is not None or w.deny
            groups.setdefault(id(w) if lone else self._length(w.k), []).append(w)
        return list(groups.values())

    def _length(self, k: int) -> int:
        """Length of the list to ask for: shorter ones cost as much, and are its beginning."""
        return min(max(k, self.loaded.model.free_length), len(self.loaded.items))

    def _rank(self, group: list[Waiting]) -> list[Ranked]:
        first = group[0]
        offer = self.loaded.offer(first.allow, first.deny)
        found = self.loaded.rank([w.history for w in group], self._length(first.k), offer)
        rows = zip(group, found.item_BW.tolist(), found.score_BW.tolist(), strict=True)
        return [[(i, s) for i, s in zip(items, scores, strict=True) if i][: w.k] for w, items, scores in rows]


# ---------------------------------------------------------------- what stands before every request


@dataclass
class Figures:
    """What /metrics tells, in the text format of Prometheus."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    slower: Counter[float] = field(default_factory=Counter)  # requests by bucket
    seconds: float = 0.0

    def note(self, path: str, status: int, seconds: float) -> None:
        self.requests[path if path in PATHS else "other", status] += 1
        self.slower[next((b for b in BUCKETS if seconds <= b), float("inf"))] += 1
        self.seconds += seconds

    def text(self, ranking: Ranking) -> str:
        lines = ["# TYPE diger_requests_total counter"]
        lines += [f'diger_requests_total{{path="{p}",status="{s}"}} {n}' for (p, s), n in sorted(self.requests.items())]
        lines.append("# TYPE diger_request_seconds histogram")
        total = 0
        for bucket in (*BUCKETS, float("inf")):
            total += self.slower[bucket]
            name = "+Inf" if bucket == float("inf") else f"{bucket:g}"
            lines.append(f'diger_request_seconds_bucket{{le="{name}"}} {total}')
        lines += [f"diger_request_seconds_sum {self.seconds:.6f}", f"diger_request_seconds_count {total}"]
        batches, ranked = ranking.batches.total(), sum(size * n for size, n in ranking.batches.items())
        lines += ["# TYPE diger_batches_total counter", f"diger_batches_total {batches}"]
        lines += ["# TYPE diger_ranked_total counter", f"diger_ranked_total {ranked}"]
        lines += ["# TYPE diger_waiting gauge", f"diger_waiting {ranking.queue.qsize()}"]
        return "\n".join(lines) + "\n"


class Gate:
    """Counts and times every request, and puts the headers on every answer."""

    def __init__(self, app: Any, figures: Figures, headers: dict[str, str]) -> None:
        self.app, self.figures = app, figures
        self.headers = [(k.lower().encode(), v.encode()) for k, v in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *self.headers]}
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            self.figures.note(scope["path"], status, time.perf_counter() - begin)


async def body_of(request: Request, limits: Limits) -> bytes:
    """The body of a request, within limits; 413 where it is too long, 408 where it does not come."""
    body = b""
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body:
                    raise HTTPException(413, f"the body is longer than {limits.body} bytes")
    except (TimeoutError, ClientDisconnect):
        raise HTTPException(408, f"the body did not come within {limits.seconds:g} s") from None
    return body


def error(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status, headers)


def hash_of(text: str) -> str:
    """A source of a content-security policy: this inline text and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def security_headers(page: str) -> dict[str, str]:
    script, style = (re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {' '.join(map(hash_of, script))}; style-src {' '.join(map(hash_of, style))}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store"}  # fmt: skip


# ---------------------------------------------------------------- the items, as people and programs read them


class Shelf:
    """The catalogue with its SIDs, where the model has some."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, table = loaded, getattr(loaded.model, "sids", None)
        self.token_NP: np.ndarray | None = None if table is None else table.token_NP.cpu().numpy()
        rows = {} if table is None else to_index(table)
        self.sids = [tuple(sys.intern(t[1:-1]) for t in rows[str(i)]) for i in range(len(rows))]  # a_12
        self.lower = [f"{title}\n{item}".lower() for title, item in zip(loaded.titles, loaded.items, strict=True)]

    def shown(self, item: int, **more: Any) -> dict[str, Any]:
        """An item number as an answer has it."""
        sid = {"sid": list(self.sids[item - 1])} if self.sids else {}
        return {"item_id": self.loaded.items[item - 1], "title": self.loaded.titles[item - 1], **sid, **more}

    def numbers(self, ids: list[str], where: str, most: int) -> list[int]:
        """Item numbers; 422 names the first id that is unknown. No search for a like one: it would cost too much."""
        if len(ids) > most:
            raise HTTPException(422, f"{where}: {len(ids)} items, at most {most} are allowed")
        for token in ids:
            if token not in self.loaded.number:
                raise HTTPException(422, f"{where}: item {quoted(token)} is not in the catalogue")
        return [self.loaded.number[token] for token in ids]

    def search(self, query: str, limit: int) -> list[dict[str, Any]]:
        """Items whose title or id holds a text, in catalogue order."""
        found, query = [], query.strip().lower()
        for i, text in enumerate(self.lower, 1):
            if query in text:
                found.append(self.shown(i))
                if len(found) == limit:
                    break
        return found

    def similar(self, item: int, k: int) -> list[dict[str, Any]]:
        """The items that share the longest beginnings of an item's SID, longest first; 404 where there are no SIDs."""
        if self.token_NP is None:
            raise HTTPException(404, "this model recommends by items, it has no semantic IDs to compare")
        depth_N = (self.token_NP == self.token_NP[item - 1]).cumprod(1).sum(1)
        depth_N[item - 1] = 0
        found: list[dict[str, Any]] = []
        for depth in range(self.token_NP.shape[1], 0, -1):
            rows = np.flatnonzero(depth_N == depth)[: k - len(found)]
            found += [self.shown(int(i) + 1, depth=depth) for i in rows]
        return found


# ---------------------------------------------------------------- the application


def create_app(loaded: Loaded, limits: Limits | None = None, hosts: list[str] | None = None) -> FastAPI:
    """The application. hosts: names under which it may be called (against DNS rebinding); None for any."""
    limits = limits or Limits()
    ranking, shelf, figures, page = Ranking(loaded, limits), Shelf(loaded), Figures(), PAGE.read_text("utf-8")

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(ranking.run())
        yield
        worker.cancel()
        ranking.pool.shutdown(cancel_futures=True)

    app = FastAPI(title="DIGER", docs_url=None, redoc_url=None, lifespan=life)
    app.state.ranking = ranking
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.add_middleware(Gate, figures=figures, headers=security_headers(page))
    add_refusals(app)

    @app.post("/recommend")
    async def recommend(request: Request) -> Any:
        question = Question.model_validate_json(await body_of(request, limits))
        if question.k > limits.k:
            raise HTTPException(422, f"k: {question.k} is above {limits.k}")
        history = shelf.numbers(question.history, "history", limits.history)
        allow = None if question.allow is None else shelf.numbers(question.allow, "allow", limits.history)
        deny = shelf.numbers(question.deny, "deny", limits.history)
        found = await ranking.ask(history, question.k, allow, deny)
        return {"items": [shelf.shown(item, score=score) for item, score in found]}

    @app.get("/similar")
    async def similar(item: str, k: Annotated[int, Query(ge=1)] = 20) -> Any:
        if item not in loaded.number:
            raise HTTPException(404, f"item {quoted(item)} is not in the catalogue")
        number = loaded.number[item]
        return {"item": shelf.shown(number), "items": shelf.similar(number, min(k, limits.k))}

    @app.get("/items")
    async def items(query: Annotated[str, Query(max_length=200)] = "", limit: Annotated[int, Query(ge=1)] = 20) -> Any:
        return {"items": shelf.search(query, min(limit, limits.k))}

    @app.get("/health")
    async def health() -> Any:
        method = parts.label(loaded.cfg)
        return {"status": "ok", "items": len(loaded.items), "method": method, "sids": bool(shelf.sids)}

    @app.get("/metrics")
    async def metrics() -> Any:
        return PlainTextResponse(figures.text(ranking), media_type="text/plain; version=0.0.4")

    @app.get("/")
    async def index() -> Any:
        return HTMLResponse(page)

    return app


PLAIN = {
    "Not Found": f"nothing is here; there are {', '.join(PATHS)}",
    "Method Not Allowed": "not by this method; /recommend takes POST, all else GET",
}


def add_refusals(app: FastAPI) -> None:
    """Every refusal is {"error": one line}."""

    async def refused(request: Any, e: Any) -> Response:
        return error(e.status_code, PLAIN.get(e.detail, str(e.detail)), e.headers)

    async def invalid(request: Any, e: Any) -> Response:
        first = e.errors()[0]
        if first["type"] == "json_invalid":
            return error(422, "the body is not readable as JSON")
        place = ".".join(map(str, first["loc"][isinstance(e, RequestValidationError) :]))  # behind "query"
        return error(422, f"{place}: {first['msg']}" if place else "the body is no JSON object with a history")

    async def broken(request: Any, e: Exception) -> Response:
        return error(500, "the model could not rank this; the log of the server says why")

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ValidationError, invalid)
    app.add_exception_handler(Exception, broken)
