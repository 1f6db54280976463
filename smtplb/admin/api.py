"""The admin API: what each path answers.

Owns routes and handlers. Does not own who may ask (access.py), the form of answers (render.py, errors.py) or
sockets (server.py).
Invariant: a handler answers from one picture, or makes one change through the supervisor. Only metrics are kept.
"""

from __future__ import annotations

import asyncio
import time
from html import escape
from typing import Any

import orjson
from aiohttp import web

from smtplb.admin import access, changes, render
from smtplb.admin.control import Control
from smtplb.admin.errors import ApiError, answer_errors
from smtplb.controlplane.supervisor import Unknown
from smtplb.controlplane.views import BackendView, StatusView
from smtplb.observe.events import Notice
from smtplb.observe.metrics import content_type, exposition

MAX_BODY_BYTES = 64 * 1024
BODY_WITHIN_S = 10.0
# The probe port may be open to the world, and metrics of 300 backends hold the loop for a tenth of a second: what
# took long to make is given out again until its making cost at most a tenth of the time.
METRICS_LONG_S = 0.01
METRICS_KEPT = 9.0  # times what it took

HEADERS = {
    "Server": "smtplb",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
    ),
}

# What `GET /` lists.
PATHS = (
    ("GET", "/livez", "does the process answer; never about backends"),
    ("GET", "/readyz", "has a listener a usable backend; also /readyz/LISTENER, and ?backends=ignore"),
    ("GET", "/metrics", "for Prometheus"),
    ("GET", "/api/v1/status", "everything: condition, problems, listeners, groups, pools"),
    ("GET", "/api/v1/listeners", "listeners"),
    ("GET", "/api/v1/pools", "pools and backends; also .../POOL and .../POOL/backends/BACKEND"),
    ("PATCH", "/api/v1/pools/POOL/backends/BACKEND", "set state and weight of a backend"),
    ("GET", "/api/v1/groups", "groups; also .../GROUP"),
    ("POST", "/api/v1/groups/GROUP/failback", "bring back the pools that are well again"),
    ("POST", "/api/v1/reload", "read the configuration again and take it up"),
)


class Api:
    def __init__(self, control: Control) -> None:
        self._control = control
        self._metrics: dict[str, tuple[float, bytes]] = {}  # content type -> good until, body
        self._metrics_lock = asyncio.Lock()

    # -- probes ----------------------------------------------------------------------------------------------

    async def livez(self, request: web.Request) -> web.Response:
        if not self._control.live():
            raise ApiError(503, "a worker does not answer", live=False)
        return _json({"live": True})

    async def readyz(self, request: web.Request) -> web.Response:
        ignore = _ignore_backends(request)
        listener = request.match_info.get("listener")
        if listener is None:
            view = self._control.readiness(ignore_backends=ignore)
        else:
            view = self._control.readiness_of(listener, ignore_backends=ignore)
        if not view.ready:
            raise ApiError(503, "not ready: " + "; ".join(view.reasons), **render.readiness(view))
        return _json(render.readiness(view))

    async def metrics(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        form = content_type(accept)
        async with self._metrics_lock:
            good_until, body = self._metrics.get(form, (0.0, b""))
            if time.monotonic() >= good_until:
                view = await self._control.status()
                before = time.thread_time()  # our own time: a busy host does not make numbers stale
                body = exposition(view, accept)
                took_s = time.thread_time() - before
                kept_s = took_s * METRICS_KEPT if took_s >= METRICS_LONG_S else 0.0
                self._metrics[form] = (time.monotonic() + kept_s, body)
        return web.Response(body=body, headers={"Content-Type": form})

    # -- reading ---------------------------------------------------------------------------------------------

    async def index(self, request: web.Request) -> web.Response:
        view = await self._control.status()
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(text=_page(view), content_type="text/html", charset="utf-8")
        return web.Response(text=_plain(view), content_type="text/plain", charset="utf-8")

    async def status(self, request: web.Request) -> web.Response:
        return _json(render.status(await self._control.status()))

    async def listeners(self, request: web.Request) -> web.Response:
        view = await self._control.status()
        return _json({"listeners": [render.listener(each) for each in view.listeners]})

    async def pools(self, request: web.Request) -> web.Response:
        view = await self._control.status()
        return _json({"pools": [render.pool(each) for each in view.pools]})

    async def pool(self, request: web.Request) -> web.Response:
        name = request.match_info["pool"]
        for each in (await self._control.status()).pools:
            if each.name == name:
                return _json(render.pool(each))
        raise Unknown(f"no pool {name}")

    async def backend(self, request: web.Request) -> web.Response:
        key = (request.match_info["pool"], request.match_info["backend"])
        return _json(render.backend(_find_backend(await self._control.status(), *key)))

    async def groups(self, request: web.Request) -> web.Response:
        view = await self._control.status()
        return _json({"groups": [render.group(each) for each in view.groups]})

    async def group(self, request: web.Request) -> web.Response:
        name = request.match_info["group"]
        for each in (await self._control.status()).groups:
            if each.name == name:
                return _json(render.group(each))
        raise Unknown(f"no group {name}")

    # -- changing --------------------------------------------------------------------------------------------

    async def change_backend(self, request: web.Request) -> web.Response:
        pool, backend = request.match_info["pool"], request.match_info["backend"]
        change = changes.read_change(await _body(request))
        self._control.set_backend(
            pool,
            backend,
            state=change.state,
            weight=change.weight,
            reason=change.reason,
            for_s=change.for_s,
            force=change.force,
        )
        said = [change.state or "", "" if change.weight is None else f"weight {change.weight}"]
        self._log_change(request, f"{pool}/{backend}: {', '.join(filter(None, said))}", change.reason)
        return _json(render.backend(_find_backend(await self._control.status(), pool, backend)))

    async def fail_back(self, request: web.Request) -> web.Response:
        name = request.match_info["group"]
        if request.can_read_body and changes.read_object(await _body(request)):
            raise ApiError(422, "a fail-back takes no keys")
        if not self._control.failback(name):
            raise ApiError(409, f"group {name} has nothing to bring back")
        self._log_change(request, f"{name}: fail-back", "")
        return await self.group(request)

    async def reload(self, request: web.Request) -> web.Response:
        if request.can_read_body and changes.read_object(await _body(request)):
            raise ApiError(422, "a reload takes no keys")
        self._log_change(request, "reload", "")
        # A client that goes away must not end it half way.
        made = await asyncio.shield(asyncio.ensure_future(self._control.reload()))
        return _json(render.reload_plan(made, await self._control.status()))

    def _log_change(self, request: web.Request, what: str, reason: str) -> None:
        # What it leads to is told by the control plane; who did it is known here alone.
        fields: dict[str, str | int | float] = {"from": access.caller(request)}
        if reason:
            fields["reason"] = reason
        self._control.emit(Notice("info", "admin-change", f"operator set {what}", fields))


def probe_app(control: Control) -> web.Application:
    """Probes and metrics alone."""
    app = web.Application(middlewares=[answer_errors(control)], client_max_size=MAX_BODY_BYTES)
    _add_probes(app, Api(control))
    return app


def admin_app(control: Control, *, token: str | None, names: frozenset[str]) -> web.Application:
    guard = access.guard(control, token=token, names=names)
    app = web.Application(middlewares=[answer_errors(control), guard], client_max_size=MAX_BODY_BYTES)
    api = Api(control)
    _add_probes(app, api)
    add = app.router.add_get
    add("/", api.index)
    add("/api/v1/status", api.status)
    add("/api/v1/listeners", api.listeners)
    add("/api/v1/pools", api.pools)
    add("/api/v1/pools/{pool}", api.pool)
    add("/api/v1/pools/{pool}/backends/{backend}", api.backend)
    add("/api/v1/groups", api.groups)
    add("/api/v1/groups/{group}", api.group)
    app.router.add_patch("/api/v1/pools/{pool}/backends/{backend}", api.change_backend)
    app.router.add_post("/api/v1/groups/{group}/failback", api.fail_back)
    app.router.add_post("/api/v1/reload", api.reload)
    return app


def _add_probes(app: web.Application, api: Api) -> None:
    app.on_response_prepare.append(_add_headers)
    app.router.add_get("/livez", api.livez)
    app.router.add_get("/healthz", api.livez)
    app.router.add_get("/readyz", api.readyz)
    app.router.add_get("/readyz/{listener}", api.readyz)
    app.router.add_get("/metrics", api.metrics)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _json(value: dict[str, Any]) -> web.Response:
    # Indented: people read this with curl, and machines do not mind.
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return web.Response(body=body, content_type="application/json")


def _ignore_backends(request: web.Request) -> bool:
    said = request.query.getall("backends", [])
    if said not in ([], ["ignore"]):
        raise ApiError(400, "backends: only backends=ignore is known")
    return bool(said)


async def _body(request: web.Request) -> bytes:
    if request.content_type != "application/json":
        raise ApiError(415, "send Content-Type: application/json", headers={"Accept": "application/json"})
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            return await request.read()
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_WITHIN_S:g} s") from None


def _find_backend(view: StatusView, pool: str, backend: str) -> BackendView:
    for each in view.pools:
        if each.name == pool:
            for found in each.backends:
                if found.name == backend:
                    return found
            raise Unknown(f"no backend {backend} in pool {pool}")
    raise Unknown(f"no pool {pool}")


def _plain(view: StatusView) -> str:
    lines = [f"smtplb {view.version} on {view.hostname}: {view.condition}", ""]
    lines += [f"  {problem.where}: {problem.text}" for problem in view.problems]
    lines += [""] if view.problems else []
    lines += [f"{method:6}{path:42}{text}" for method, path, text in PATHS]
    return "\n".join(lines) + "\n"


def _page(view: StatusView) -> str:
    problems = "".join(
        f"<li><b>{escape(problem.where)}</b> {escape(problem.text)}<br>{escape(problem.hint)}</li>"
        for problem in view.problems
    )
    rows = "".join(
        f"<tr><td>{method}</td><td>{_link(method, path)}</td><td>{escape(text)}</td></tr>"
        for method, path, text in PATHS
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>smtplb: {escape(view.condition)}</title>
<style>body{{font:16px/1.5 sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}
td{{padding:.2rem 1rem .2rem 0;vertical-align:top}}</style></head>
<body><h1>{escape(view.hostname)}: {escape(view.condition)}</h1><p>smtplb {escape(view.version)}</p>
<ul>{problems}</ul><table>{rows}</table></body></html>
"""


def _link(method: str, path: str) -> str:
    return f'<a href="{path}">{path}</a>' if method == "GET" else escape(path)
