"""Readers of values that need more than the value: where the file stands, what lies beside it, this host.

Owns the binds, paths, secrets, PEM files and numbers of processes among the values. Does not own the keys
(schema.py), nor what makes such a file good (files.py, pem.py).
Invariant: relative paths start at the file that they stand in; a file or directory that comes out was there
and could be used a moment ago.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path as FilePath

from pydantic import ValidationInfo

from smtplb.config.addresses import bind_address, bind_addresses, unix_path
from smtplb.config.files import UnreadableError, judge_state_directory, read_secret
from smtplb.config.scalars import text, whole
from smtplb.config.section import context_of
from smtplb.settings import Address

AUTO = "auto"
MAX_WORKERS = 64
LOG_STREAMS = ("stdout", "stderr")

_number_of_workers = whole(1, MAX_WORKERS)


def binds(value: object, info: ValidationInfo) -> tuple[Address, ...]:
    return bind_addresses(value, context_of(info).directory)


def bind(value: object, info: ValidationInfo) -> Address:
    return bind_address(value, context_of(info).directory)


def admin_socket(value: object, info: ValidationInfo) -> str:
    return unix_path(value, context_of(info).directory)


def token(value: object, info: ValidationInfo) -> str:
    try:
        return read_secret(context_of(info).path(text(value)))
    except UnreadableError as error:
        raise ValueError(str(error)) from None


def good_path(check: Callable[[FilePath], None]) -> Callable[[object, ValidationInfo], str]:
    """A reader of paths that `check` raises no UnreadableError for."""

    def read(value: object, info: ValidationInfo) -> str:
        path = context_of(info).path(text(value))
        try:
            check(path)
        except UnreadableError as error:
            raise ValueError(str(error)) from None
        return str(path)

    return read


state_directory = good_path(judge_state_directory)


def log_destination(value: object, info: ValidationInfo) -> str:
    written = text(value)
    if written in LOG_STREAMS:
        return written
    if "/" not in written:
        raise ValueError("must be stdout, stderr or a path with a slash, such as /var/log/smtplb.log")
    return str(context_of(info).path(written))


def workers(value: object) -> int:
    """A number, or `auto`: one for each processor that this process may run on."""
    if value == AUTO:
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    try:
        return _number_of_workers(value)
    except ValueError as error:
        raise ValueError(f"{error}, or {AUTO}") from None
