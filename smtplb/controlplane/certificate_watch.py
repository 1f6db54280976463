"""Certificate files: looked at again and again, so that a renewed certificate is in use without a reload.

Owns which files there are, what they were when they were read last, and when the certificates in use end.
Does not own what makes a file usable (config/pem.py: what would be refused at the start is refused here);
TLS contexts: workers have those (dataplane/certificates.py) and are told to read again; what is a problem
(problems.py).
Invariant: what cannot be read changes nothing: workers are told of a change only after it was read here
without a mistake. So `expires` is always that of the certificate in use.

Looking, not inotify: a look sees through symbolic links (certbot points `live/` at another file, Kubernetes
points `..data` at another folder), works on every file system, and costs one stat() a file. A change is read
when two looks in a row saw the same: whoever writes two files needs a moment between them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from smtplb.config import pem
from smtplb.config.files import UnreadableError, read_pem
from smtplb.controlplane.alarm import Alarm
from smtplb.controlplane.problems import expires_soon, expiry_words
from smtplb.controlplane.views import CertificateView
from smtplb.controlplane.x509 import first_in_pem, not_after
from smtplb.dataplane.deadlines import Deadlines
from smtplb.observe.events import Notice
from smtplb.settings import (
    BackTlsMode,
    BackTlsSettings,
    CertificateSettings,
    ClientCertificates,
    FrontTlsMode,
    FrontTlsSettings,
    TrafficSettings,
)

LOOK_S = 5.0  # a change is in use after two looks, 10 s at most; certbot renews 30 days before the end
REMIND_S = 86_400.0  # between log lines about a certificate that ends soon

Stamp = tuple[int, ...]


class _Watched:
    """Files that are of use only together. `stamp` is theirs when they were read last."""

    def __init__(self, label: str, files: Iterable[str]) -> None:
        self.label = label  # "listener mx: certificate mx.pem"
        self.files = tuple(dict.fromkeys(files))
        self.read_stamp: list[Stamp] = []
        self.seen_stamp: list[Stamp] = []
        self.problem = ""
        self.in_use = False  # it was read without a mistake at least once
        self.expires: float | None = None  # unix time; None: an authority, or never read

    def read(self) -> float | None:
        """Unix time at which it ends, None if nobody asks. UnreadableError if workers could not use it."""
        raise NotImplementedError


class _Pair(_Watched):
    """A certificate with its key, and what the listener needs besides."""

    def __init__(self, listener: str, settings: FrontTlsSettings, pair: CertificateSettings) -> None:
        asks = settings.client_certificates is not ClientCertificates.OFF
        self._client_ca = settings.client_ca if asks else None
        more = [] if self._client_ca is None else [self._client_ca]
        super().__init__(
            f"listener {listener}: certificate {pair.certificate}", [pair.certificate, pair.key, *more]
        )
        self.listener = listener
        self.pair = pair

    def read(self) -> float:
        certificate, key = Path(self.pair.certificate), Path(self.pair.key)
        pem.authorities(certificate)
        read_pem(key, secret=True)
        if (why := pem.why_no_pair(str(certificate), str(key))) is not None:
            raise UnreadableError(why)
        if self._client_ca is not None:
            pem.authorities(Path(self._client_ca))
        try:
            return not_after(first_in_pem(read_pem(certificate).decode("latin-1")))
        except ValueError as error:
            raise UnreadableError(f"{certificate}: {error}") from error


class _Authorities(_Watched):
    """A file of authorities that backends' certificates are verified against."""

    def __init__(self, path: str) -> None:
        super().__init__(f"CA file {path}", [path])
        self.path = Path(path)

    def read(self) -> None:
        pem.authorities(self.path)


class CertificateWatch:
    """`changed` is called when workers shall read certificates again; at most once per look. `wall`: unix time."""

    def __init__(
        self,
        traffic: TrafficSettings,
        *,
        deadlines: Deadlines,
        wall: Callable[[], float],
        emit: Callable[[Notice], None],
        changed: Callable[[], None],
    ) -> None:
        self._deadlines = deadlines
        self._wall = wall
        self._emit = emit
        self._changed = changed
        self._pairs = [
            _Pair(listener.name, listener.tls, pair)
            for listener in traffic.listeners
            if listener.tls.mode is not FrontTlsMode.OFF
            for pair in listener.tls.certificates
        ]
        authorities = {
            ca: _Authorities(ca)
            for pool in traffic.pools
            for backend in pool.backends
            if (ca := _authorities_of(backend.tls)) is not None
        }
        self._authorities = authorities
        self._watched: list[_Watched] = [*self._pairs, *authorities.values()]
        self._reminded_at = 0.0
        self._alarm = Alarm(deadlines, self._look)

    def start(self) -> None:
        """Read everything now, and look again from now on. Workers need not be told: they read when they start."""
        if not self._watched:
            return
        stamps = self._stamps()
        for watched in self._watched:
            watched.seen_stamp = [stamps[file] for file in watched.files]
            self._read(watched)
        self._remind()
        self._alarm.set(self._deadlines.clock() + LOOK_S)

    def close(self) -> None:
        self._alarm.off()

    # -- for views -----------------------------------------------------------------------------------

    def of_listener(self, name: str) -> list[CertificateView]:
        return [
            CertificateView(pair.pair.certificate, pair.expires, pair.problem, pair.in_use)
            for pair in self._pairs
            if pair.listener == name
        ]

    def ca_problem(self, tls: BackTlsSettings) -> str:
        """What is wrong with the CA file of a backend with these settings; "" if nothing is, or it has none."""
        authorities = self._authorities.get(_authorities_of(tls) or "")
        return "" if authorities is None else authorities.problem

    # -- within --------------------------------------------------------------------------------------

    def _look(self) -> None:
        stamps = self._stamps()
        read_anew = False
        for watched in self._watched:
            stamp = [stamps[file] for file in watched.files]
            settled = stamp == watched.seen_stamp
            watched.seen_stamp = stamp
            if settled and stamp != watched.read_stamp:
                read_anew |= self._read_again(watched)
        if read_anew:
            self._changed()
        if self._wall() - self._reminded_at >= REMIND_S:
            self._remind()
        self._alarm.set(self._deadlines.clock() + LOOK_S)

    def _read_again(self, watched: _Watched) -> bool:
        """True if it is of use, and workers shall have it."""
        self._read(watched)
        if watched.problem:
            return False
        end = "" if watched.expires is None else f"; it {expiry_words(watched.expires, self._wall())}"
        self._emit(Notice("info", "certificate", f"{watched.label} has changed and is read again{end}"))
        return True

    def _read(self, watched: _Watched) -> None:
        watched.read_stamp = watched.seen_stamp
        try:
            watched.expires = watched.read()
        except UnreadableError as error:
            watched.problem = str(error)
            rest = "; the one that was read before stays in use" if watched.in_use else ""
            self._emit(Notice("error", "certificate", f"{watched.label} cannot be used: {error}{rest}"))
        else:
            watched.problem = ""
            watched.in_use = True

    def _stamps(self) -> dict[str, Stamp]:
        return {file: stamp(file) for watched in self._watched for file in watched.files}

    def _remind(self) -> None:
        now = self._reminded_at = self._wall()
        for pair in self._pairs:
            if pair.expires is not None and expires_soon(pair.expires, now):
                self._emit(
                    Notice("warning", "certificate", f"{pair.label} {expiry_words(pair.expires, now)}")
                )


def _authorities_of(tls: BackTlsSettings) -> str | None:
    """The CA file that is in use: opportunistic TLS never verifies."""
    verifies = tls.mode in (BackTlsMode.REQUIRED, BackTlsMode.IMPLICIT) and tls.verify
    return tls.ca if verifies else None


def stamp(path: str) -> Stamp:
    """Another one after each change of what the path leads to; through symbolic links, without opening.

    ctime too: `cp -p` and rsync restore mtime, chmod may be what makes a key readable.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
