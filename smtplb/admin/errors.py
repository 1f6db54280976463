"""Errors of the admin API as RFC 9457 problem details.

Owns their form, and how an exception becomes one. Does not own when they occur.
Invariant: a client gets no text of an exception that is not meant for it; what went wrong inside is logged.
"""

from __future__ import annotations

import traceback
from http import HTTPStatus

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from smtplb.admin.control import Control
from smtplb.controlplane.supervisor import (
    BindError,
    CannotReload,
    ConfigErrors,
    Invalid,
    NeedsRestart,
    Unknown,
    WouldStrand,
)
from smtplb.observe.events import Notice

Member = str | bool | list[str] | dict[str, bool] | list[dict[str, str]]

PROBLEM_JSON = "application/problem+json"


class ApiError(Exception):
    """An answer other than success. `members` join type, status, title and detail in the problem."""

    def __init__(
        self, status: int, detail: str, *, headers: dict[str, str] | None = None, **members: Member
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.members = members

    def response(self) -> web.Response:
        body = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }
        return web.Response(
            status=self.status,
            body=orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE),
            content_type=PROBLEM_JSON,
            headers=self.headers,
        )


_DETAILS = {
    404: "there is nothing at this path; GET / lists what there is",
    405: "this path does not know the method",
    413: "the body is larger than 64 KiB",
}


def _from_aiohttp(error: web.HTTPException) -> ApiError:
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return ApiError(error.status, _DETAILS.get(error.status, "the request cannot be served"), headers=headers)


def answer_errors(control: Control) -> Middleware:
    """The outermost middleware: whatever happens inside becomes a response."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            return error.response()
        except web.HTTPException as error:
            return _from_aiohttp(error).response()
        except Unknown as error:
            return ApiError(404, _text(error)).response()
        except Invalid as error:
            return ApiError(422, _text(error)).response()
        except WouldStrand as error:
            detail = 'this leaves listeners without a usable backend; to do it all the same: "force": true'
            return ApiError(409, detail, listeners=list(error.listeners)).response()
        except ConfigErrors as error:
            return _mistakes(error).response()
        except NeedsRestart as error:
            return ApiError(422, _text(error), restart=list(error.keys)).response()
        except BindError as error:
            return ApiError(422, f"{error}; nothing was changed").response()
        except CannotReload as error:
            return ApiError(409, _text(error)).response()
        except TimeoutError:
            return ApiError(503, "a worker does not answer").response()
        except Exception:
            where = f"{request.method} {request.path}"
            control.emit(
                Notice(
                    "error", "bug", f"admin request failed: {where}", {"exception": traceback.format_exc()}
                )
            )
            return ApiError(500, "internal error; the log has more").response()

    return middleware


def _mistakes(error: ConfigErrors) -> ApiError:
    """All of them: who mends a file wants to do it once."""
    count = len(error.errors)
    detail = f"the configuration has {count} mistake{'s' if count > 1 else ''}; nothing was changed"
    mistakes = [
        {
            "file": each.file,
            "line": str(each.line),
            "column": str(each.column),
            "key": each.key,
            "detail": each.message,
            "text": str(each),
        }
        for each in error.errors
    ]
    return ApiError(422, detail, errors=mistakes)


def _text(error: Exception) -> str:
    return str(error.args[0]) if error.args else ""  # str() of a LookupError may be a repr
