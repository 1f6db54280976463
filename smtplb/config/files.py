"""Files that a configuration is made of, read with bounds.

Owns reading, the limits on it, and the digest over what was read. Does not own what the texts mean.
Invariant: no file is read beyond its limit, and only what was asked for by path is opened.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from smtplb.config.errors import quote_path

MAX_CONFIG_BYTES = 1024 * 1024  # one YAML file. 3,000 backends written out are about 300 KB
MAX_LIST_BYTES = 16 * 1024 * 1024  # one `file:` list; a million domains
MAX_SECRET_BYTES = 4096
MAX_PEM_BYTES = 4 * 1024 * 1024  # the authorities that systems trust are about 250 KB
MIN_SECRET_CHARS = 16  # what cannot be guessed over the network; `openssl rand -hex 16` writes 32


class UnreadableError(Exception):
    """A file that cannot be used, in words for the operator; `line` and `column` if known, else 0."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class Files:
    """The files of one configuration: where each stands (relative paths in it start there), their digest."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._digest_written = hashlib.sha256()  # without lists
        self._count = 0
        self._directories: dict[str, Path] = {}
        self._lists: dict[Path, str] = {}

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest() if self._count else ""

    @property
    def sha256_written(self) -> str:
        """Of the YAML alone: it does not change with a list."""
        return self._digest_written.hexdigest() if self._count else ""

    @property
    def lists(self) -> tuple[str, ...]:
        return tuple(map(str, self._lists))

    def add(self, name: str, directory: Path) -> None:
        """A file called `name` in errors, whose relative paths start at `directory`."""
        self._directories[name] = directory

    def directory(self, name: str) -> Path:
        return self._directories[name]

    def config_text(self, path: Path) -> str:
        """A YAML file. It may be a pipe: `smtplb validate <(generate)`."""
        return self._written(path)

    def included_text(self, path: Path) -> str:
        _must_be_regular(path)
        return self._written(path)

    def list_text(self, path: Path) -> str:
        """A `file:` list, read once however often it is named."""
        if path not in self._lists:
            _must_be_regular(path)
            self._lists[path] = utf8(self._read(path, MAX_LIST_BYTES))
        return self._lists[path]

    def _written(self, path: Path) -> str:
        data = self._read(path, MAX_CONFIG_BYTES)
        self._digest_written.update(len(data).to_bytes(8, "big") + data)
        return utf8(data)

    def _read(self, path: Path, limit_bytes: int) -> bytes:
        data = _bounded(path, limit_bytes)
        self._digest.update(len(data).to_bytes(8, "big") + data)
        self._count += 1
        return data


def utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        raise UnreadableError(f"not UTF-8: byte 0x{data[error.start]:02x}", line, column) from None


def read_secret(path: Path) -> str:
    """A token. As ssh does with keys, a file that others may read is refused: it is no secret any more."""
    _must_be_closed(path, _must_be_regular(path))
    secret = utf8(_bounded(path, MAX_SECRET_BYTES)).strip(" \t\r\n")
    if len(secret) < MIN_SECRET_CHARS:
        raise UnreadableError(
            f"{quote_path(path)} holds fewer than {MIN_SECRET_CHARS} characters: too easy to guess"
        )
    if not all("!" <= char <= "~" for char in secret):
        raise UnreadableError(
            f"{quote_path(path)} holds blanks or characters beyond ASCII: an HTTP header takes neither"
        )
    return secret


def read_pem(path: Path, *, secret: bool = False) -> bytes:
    """A certificate, or a key (`secret`). Not part of the digest: renewing one changes no configuration."""
    mode = _must_be_regular(path)
    if secret:
        _must_be_closed(path, mode)
    return _bounded(path, MAX_PEM_BYTES)


def judge_state_directory(path: Path) -> None:
    """Where this program may leave files. Raises UnreadableError; makes nothing."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        hint = "make it, and give it to the user that smtplb runs as"
        raise UnreadableError(f"there is no {quote_path(path)}: {hint}") from None
    except (OSError, ValueError) as error:
        raise UnreadableError(_reason(path, error)) from None
    if not stat.S_ISDIR(mode):
        raise UnreadableError(f"{quote_path(path)} is not a directory")
    if mode & stat.S_IWOTH:
        raise UnreadableError(f"every user of this host may write into {quote_path(path)}: chmod o-w it")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UnreadableError(
            f"cannot write into {quote_path(path)}: its permissions, or a read-only file system"
        )


def _must_be_closed(path: Path, mode: int) -> None:
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise UnreadableError(f"{quote_path(path)} is open to every user of this host: chmod o= it")


def _must_be_regular(path: Path) -> int:
    """The mode of a regular file. Anything else is refused before open: a pipe would hang, a device never
    end.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise UnreadableError(_reason(path, error)) from None
    if not stat.S_ISREG(mode):
        raise UnreadableError(f"{quote_path(path)} is not a regular file")
    return mode


def _bounded(path: Path, limit_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(limit_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL or a surrogate in the name
        raise UnreadableError(_reason(path, error)) from None
    if len(data) > limit_bytes:
        raise UnreadableError(f"{quote_path(path)} is larger than {limit_bytes} octets")
    return data


def _reason(path: Path, error: OSError | ValueError) -> str:
    why = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable file name"
    return f"cannot read {quote_path(path)}: {why}"
