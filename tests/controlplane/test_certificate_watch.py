"""Certificate files that change, vanish, break and end, on a clock that stands still."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest
import trustme

from smtplb.controlplane.certificate_watch import CertificateWatch
from smtplb.observe.events import Notice
from smtplb.settings import (
    Address,
    BackTlsMode,
    BackTlsSettings,
    CertificateSettings,
    ClientCertificates,
    FrontTlsMode,
    FrontTlsSettings,
    ListenerSettings,
    TrafficSettings,
)
from tests.controlplane.clock import FakeClock
from tests.controlplane.things import backend, pool

AUTHORITY = trustme.CA()
DAY = 86_400


class Desk:
    """A watch over a listener with certificates in `folder`, and everything it says."""

    def __init__(self, folder: Path, *, names: tuple[str, ...] = ("mx",), ca: bool = False) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.notices: list[Notice] = []
        self.reloads = 0
        self.pairs = tuple(
            CertificateSettings(f"{folder}/{name}.pem", f"{folder}/{name}.key") for name in names
        )
        for name in names:
            self.issue(name, 90)
        self.tls = BackTlsSettings(BackTlsMode.REQUIRED, ca=f"{folder}/ca.pem") if ca else BackTlsSettings()
        if ca:
            AUTHORITY.cert_pem.write_to_path(f"{folder}/ca.pem")
        self.front = FrontTlsSettings(FrontTlsMode.STARTTLS, self.pairs)

    def issue(self, name: str, days: float, folder: Path | None = None) -> None:
        """A certificate that ends in so many days of the fake clock, and its key."""
        ends = dt.datetime.fromtimestamp(self.clock.wall() + days * DAY, dt.UTC)
        leaf = AUTHORITY.issue_cert("mx.test", not_after=ends)
        certificate = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        self.write(f"{name}.pem", certificate, folder)
        self.write(f"{name}.key", leaf.private_key_pem.bytes(), folder)

    def write(self, name: str, content: bytes, folder: Path | None = None) -> Path:
        path = (folder or self.folder) / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path

    def start(self) -> Desk:
        traffic = TrafficSettings(
            "lb1.test",
            (ListenerSettings("mx", (Address("127.0.0.1", 0),), "p", tls=self.front),),
            (pool("p", backend("p", "a", tls=self.tls)),),
        )
        self.watch = CertificateWatch(
            traffic,
            deadlines=self.clock.deadlines,
            wall=self.clock.wall,
            emit=self.notices.append,
            changed=self._changed,
        )
        self.watch.start()
        return self

    def _changed(self) -> None:
        self.reloads += 1

    def looks(self, count: int) -> None:
        for _ in range(count):
            self.clock.go(5.1)

    def said(self) -> list[tuple[str, str]]:
        told = [(notice.level, notice.text.replace(str(self.folder), "~")) for notice in self.notices]
        self.notices.clear()
        return told

    @property
    def days_left(self) -> float:
        expires = self.watch.of_listener("mx")[0].expires
        assert expires is not None
        return (expires - self.clock.wall()) / DAY


def test_it_knows_when_certificates_end_and_has_nothing_to_say(tmp_path: Path) -> None:
    desk = Desk(tmp_path, names=("mx", "out")).start()
    desk.looks(3)
    assert [(view.file, view.problem, view.in_use) for view in desk.watch.of_listener("mx")] == [
        (f"{tmp_path}/mx.pem", "", True),
        (f"{tmp_path}/out.pem", "", True),
    ]
    assert desk.days_left == pytest.approx(90, abs=0.01)
    assert (desk.reloads, desk.said()) == (0, [])


def test_a_renewed_certificate_is_read_after_two_looks_that_saw_the_same(tmp_path: Path) -> None:
    desk = Desk(tmp_path).start()
    desk.issue("mx", 200)
    desk.looks(1)
    assert desk.reloads == 0
    desk.looks(1)
    assert desk.reloads == 1
    assert desk.said() == [
        ("info", "listener mx: certificate ~/mx.pem has changed and is read again; it expires in 199 d")
    ]
    assert desk.days_left == pytest.approx(200, abs=0.01)
    desk.looks(3)
    assert desk.reloads == 1


def test_files_that_are_still_being_written_are_left_alone(tmp_path: Path) -> None:
    desk = Desk(tmp_path).start()
    for _ in range(4):
        desk.issue("mx", 200)
        desk.looks(1)
    assert desk.reloads == 0
    desk.looks(1)
    assert desk.reloads == 1


def test_a_link_that_leads_to_another_file_is_seen(tmp_path: Path) -> None:
    """certbot: live/mx.pem -> ../archive/mx2.pem"""
    desk = Desk(tmp_path)
    for kind in ("pem", "key"):
        (tmp_path / f"mx.{kind}").rename(tmp_path / f"mx1.{kind}")
        (tmp_path / f"mx.{kind}").symlink_to(f"mx1.{kind}")
    desk.start()
    desk.issue("mx2", 200)
    for kind in ("pem", "key"):
        (tmp_path / "new").symlink_to(f"mx2.{kind}")
        (tmp_path / "new").rename(tmp_path / f"mx.{kind}")
    desk.looks(2)
    assert desk.reloads == 1
    assert desk.days_left == pytest.approx(200, abs=0.01)


def test_a_folder_that_is_exchanged_is_seen(tmp_path: Path) -> None:
    """Kubernetes: mx.pem -> ..data/mx.pem, ..data -> ..2026"""
    desk = Desk(tmp_path)
    for number, days in ((1, 90), (2, 200)):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        desk.issue("mx", days, folder)
    (tmp_path / "..data").symlink_to("..1")
    for kind in ("pem", "key"):
        (tmp_path / f"mx.{kind}").unlink()
        (tmp_path / f"mx.{kind}").symlink_to(f"..data/mx.{kind}")
    desk.start()
    (tmp_path / "..tmp").symlink_to("..2")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    desk.looks(2)
    assert desk.reloads == 1
    assert desk.days_left == pytest.approx(200, abs=0.01)


def test_a_copy_that_keeps_size_and_times_is_seen(tmp_path: Path) -> None:
    desk = Desk(tmp_path).start()
    old = os.stat(tmp_path / "mx.key")
    content = (tmp_path / "mx.key").read_bytes()
    desk.write("mx.key", content)
    os.utime(tmp_path / "mx.key", ns=(old.st_atime_ns, old.st_mtime_ns))
    desk.looks(2)
    assert desk.reloads == 1


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda desk: (desk.folder / "mx.pem").unlink(), "mx.pem"),
        (lambda desk: (desk.folder / "mx.key").unlink(), "mx.key"),
        (lambda desk: desk.write("mx.pem", b"junk"), "no certificate"),
        (lambda desk: desk.write("mx.key", b"junk"), "mx.key"),
        (lambda desk: desk.write("mx.key", AUTHORITY.issue_cert("b.test").private_key_pem.bytes()), "mx.key"),
        (lambda desk: (desk.folder / "mx.key").chmod(0o644), "open to every user"),
    ],
    ids=["no certificate", "no key", "junk", "junk for a key", "another's key", "key for all to read"],
)
def test_what_cannot_be_used_changes_nothing_and_is_told(tmp_path: Path, spoil: object, why: str) -> None:
    assert callable(spoil)
    desk = Desk(tmp_path).start()
    spoil(desk)
    desk.looks(3)
    assert desk.reloads == 0
    ((level, text),) = desk.said()
    assert level == "error"
    assert text.startswith("listener mx: certificate ~/mx.pem cannot be used: ")
    assert text.endswith("; the one that was read before stays in use")
    assert why in text
    (view,) = desk.watch.of_listener("mx")
    assert why in view.problem
    assert view.in_use
    assert desk.days_left == pytest.approx(90, abs=0.01)
    desk.issue("mx", 200)
    desk.looks(2)
    assert (desk.reloads, desk.watch.of_listener("mx")[0].problem) == (1, "")


def test_a_certificate_that_never_could_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    (tmp_path / "mx.key").unlink()
    desk.start()
    ((level, text),) = desk.said()
    assert level == "error"
    assert "stays in use" not in text
    (view,) = desk.watch.of_listener("mx")
    assert (view.expires, view.in_use) == (None, False)
    assert view.problem


def test_one_that_ends_soon_is_told_at_the_start_and_every_day(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.issue("mx", 6.5)
    desk.start()
    assert desk.said() == [("warning", "listener mx: certificate ~/mx.pem expires in 6 d")]
    desk.looks(100)
    assert desk.said() == []
    desk.clock.now += DAY  # nobody waits for a fake day tick by tick
    desk.looks(1)
    assert desk.said() == [("warning", "listener mx: certificate ~/mx.pem expires in 5 d")]
    desk.clock.now += 6 * DAY
    desk.looks(1)
    assert desk.said() == [("warning", "listener mx: certificate ~/mx.pem expired 12 h ago")]


def test_the_authorities_of_clients_belong_to_the_certificate(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    ca = desk.write("clients.pem", AUTHORITY.cert_pem.bytes())
    desk.front = FrontTlsSettings(
        FrontTlsMode.STARTTLS,
        desk.pairs,
        client_certificates=ClientCertificates.OPTIONAL,
        client_ca=str(ca),
    )
    desk.start()
    desk.write("clients.pem", b"junk")
    desk.looks(2)
    assert desk.reloads == 0
    assert "clients.pem" in desk.watch.of_listener("mx")[0].problem
    desk.write("clients.pem", trustme.CA().cert_pem.bytes())
    desk.looks(2)
    assert desk.reloads == 1


def test_authorities_of_backends_are_watched_where_they_verify(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ca=True).start()
    assert desk.watch.ca_problem(desk.tls) == ""
    desk.write("ca.pem", b"junk")
    desk.looks(2)
    assert desk.reloads == 0
    assert "ca.pem" in desk.watch.ca_problem(desk.tls)
    assert "ca.pem cannot be used" in desk.said()[0][1]
    desk.write("ca.pem", trustme.CA().cert_pem.bytes())
    desk.looks(2)
    assert (desk.reloads, desk.watch.ca_problem(desk.tls)) == (1, "")
    assert desk.said() == [("info", "CA file ~/ca.pem has changed and is read again")]
    assert desk.watch.ca_problem(BackTlsSettings()) == ""


def test_many_changes_in_one_look_are_one_reload(tmp_path: Path) -> None:
    desk = Desk(tmp_path, names=("mx", "out"), ca=True).start()
    desk.issue("mx", 200)
    desk.issue("out", 200)
    AUTHORITY.cert_pem.write_to_path(f"{tmp_path}/ca.pem")
    desk.looks(2)
    assert desk.reloads == 1


def test_without_files_nothing_is_looked_at(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.front = FrontTlsSettings()
    desk.start()
    assert not desk.watch._alarm.armed


def test_after_its_end_it_looks_no_more(tmp_path: Path) -> None:
    desk = Desk(tmp_path).start()
    desk.watch.close()
    desk.issue("mx", 200)
    desk.looks(3)
    assert desk.reloads == 0
