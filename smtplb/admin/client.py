"""A client of the admin API, for the command line.

Owns how the API is reached, and how answers and problems are read. Does not own what is shown of them (cli/).
Invariant: every call ends in an answer, Refused or Unreachable, within TIMEOUT_S.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 32 * 1024 * 1024  # 10,000 backends are some 12 MiB

Json = dict[str, Any]


class Unreachable(Exception):
    """No balancer answered there; the text says where and why."""


class Refused(Exception):
    """It answered with a problem."""

    def __init__(self, status: int, problem: Json) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP status {status}"))
        self.status = status
        self.problem = problem


class AdminClient:
    """An async context manager. `url` is http:// or https://; with `socket` its host is of no meaning."""

    def __init__(self, url: str, *, socket: str | None = None, token: str | None = None) -> None:
        self._where = f"unix:{socket}" if socket else url
        self._base = "http://localhost" if socket else url.rstrip("/")
        self._socket = socket
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AdminClient:
        connector = aiohttp.UnixConnector(self._socket) if self._socket else None
        # trust_env stays off: a proxy for the web has no business between an operator and the balancer.
        self._session = aiohttp.ClientSession(
            connector=connector, headers=self._headers, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def status(self) -> Json:
        return await self._call("GET", "/api/v1/status")

    async def change_backend(self, pool: str, backend: str, change: Json) -> Json:
        path = f"/api/v1/pools/{quote(pool, safe='')}/backends/{quote(backend, safe='')}"
        return await self._call("PATCH", path, change)

    async def fail_back(self, group: str) -> Json:
        return await self._call("POST", f"/api/v1/groups/{quote(group, safe='')}/failback")

    async def reload(self) -> Json:
        return await self._call("POST", "/api/v1/reload")

    async def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        assert self._session is not None
        try:
            async with self._session.request(
                method,
                self._base + path,
                data=None if body is None else orjson.dumps(body),
                headers={} if body is None else {"Content-Type": "application/json"},
                allow_redirects=False,  # the token is for this place alone
            ) as response:
                status = response.status
                answer = await response.content.read(MAX_ANSWER_BYTES)
                while more := await response.content.read(MAX_ANSWER_BYTES - len(answer)):
                    answer += more
        except TimeoutError:
            raise Unreachable(f"{self._where}: no answer within {TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(f"{self._where}: {_why(error)}") from None
        return self._read(status, answer)

    def _read(self, status: int, answer: bytes) -> Json:
        try:
            read = orjson.loads(answer)
        except orjson.JSONDecodeError:
            read = None
        if not isinstance(read, dict):
            raise Unreachable(f"{self._where}: what answers there is no smtplb (HTTP status {status})")
        if status >= 300:
            raise Refused(status, read)
        return read


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        # asyncio's own text for a refused connection is "Connect call failed"; names that do not resolve are below 0
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return str(error) or type(error).__name__
