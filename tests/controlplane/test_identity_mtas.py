"""Identity and TLS of real mail servers, as checks see them: what passes leaves no complaint in their logs, and what
does not pass says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from smtplb.controlplane import certificate_watch
from smtplb.controlplane.prober import Prober
from smtplb.controlplane.registry import CheckResult
from smtplb.controlplane.supervisor import Supervisor
from smtplb.dataplane.deadlines import Deadlines
from smtplb.observe.events import BackendChanged, Event
from smtplb.settings import (
    BackendSettings,
    BackTlsMode,
    BackTlsSettings,
    CheckLevel,
    CheckSettings,
    IdentityMode,
    Settings,
    ShutdownSettings,
    TrafficSettings,
)
from tests.controlplane.test_with_worker import Client
from tests.controlplane.things import backend, listener, pool
from tests.lab import Exim, Mta, Postfix, Sendmail, TlsFiles, wait_until
from tests.lab.fixtures import Lab

ROUNDS = 4
PROXY_MODES = [IdentityMode.PROXY_V1, IdentityMode.PROXY_V2]
XCLIENT, XFORWARD = IdentityMode.XCLIENT, IdentityMode.XFORWARD
LACKS_PROXY = "identity: does not take the PROXY header"


async def checked(*backends: BackendSettings, rounds: int = ROUNDS) -> list[CheckResult]:
    """So many results of each backend, one check close behind the other."""
    found: dict[object, list[CheckResult]] = {backend.key: [] for backend in backends}
    enough = asyncio.Event()

    def report(key: object, result: CheckResult) -> None:
        found[key].append(result)
        if all(len(results) >= rounds for results in found.values()):
            enough.set()

    loop = asyncio.get_running_loop()
    deadlines = Deadlines.of(loop)
    prober = Prober(
        backends,
        hello="lb1.test",
        deadlines=deadlines,
        report=report,
        interval_s=lambda key: 0.05,
    )
    prober.start(loop)
    async with asyncio.timeout(30):
        await enough.wait()
    await prober.stop(10)
    deadlines.close()
    return [result for results in found.values() for result in results]


async def started(lab: Lab, mta: Mta) -> int:
    return (await asyncio.to_thread(lab.start, mta)).port


async def quit_logged(postfix: Postfix, count: int) -> None:
    """Postfix may write its line after the 221."""
    logged = lambda: len(postfix.log_lines(" quit=1 ")) >= count  # noqa: E731
    await asyncio.to_thread(wait_until, logged, f"{count} lines in the log")


def of(port: int, identity: IdentityMode, level: CheckLevel = CheckLevel.EHLO) -> BackendSettings:
    return backend("p", f"{identity}-{level}", port=port, identity=identity, level=level)


class Files:
    """A server's certificate, the CA file that fits it, and one that does not."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        leaf = authority.issue_cert("mx1.test")
        self.server = TlsFiles(str(folder / "mx1.pem"), str(folder / "mx1.key"))
        Path(self.server.certificate).write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(self.server.key)
        self.ca = str(folder / "ca.pem")
        authority.cert_pem.write_to_path(self.ca)
        self.other_ca = str(folder / "other.pem")
        trustme.CA().cert_pem.write_to_path(self.other_ca)

    def tls(self, mode: BackTlsMode = BackTlsMode.REQUIRED, name: str = "mx1.test") -> BackTlsSettings:
        return BackTlsSettings(mode, ca=self.ca, server_name=name)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


class TestProxy:
    @pytest.mark.parametrize("mta", [Postfix, Exim])
    async def test_checks_send_the_header_and_leave_no_complaint(
        self, lab: Lab, mta: type[Postfix | Exim]
    ) -> None:
        server = mta(proxy_protocol=True)
        port = await started(lab, server)
        found = await checked(*[of(port, mode) for mode in PROXY_MODES])
        assert {(result.passed, result.identity) for result in found} == {(True, True)}
        if isinstance(server, Postfix):
            await quit_logged(server, len(found))
        complaints = ("warning", "error", "lost", "NOQUEUE")
        assert [line for line in server.log_lines() if any(word in line for word in complaints)] == []

    @pytest.mark.parametrize("mta", [Postfix, Exim, Sendmail])
    @pytest.mark.parametrize("mode", PROXY_MODES)
    async def test_a_server_that_does_not_know_the_header_is_never_taken_for_proven(
        self, lab: Lab, mta: type[Mta], mode: IdentityMode
    ) -> None:
        port = await started(lab, mta())
        found = await checked(of(port, mode), of(port, mode, CheckLevel.TCP))
        assert {(result.passed, result.identity) for result in found} == {(False, False)}
        assert all(result.text.startswith(LACKS_PROXY) for result in found)

    async def test_a_server_that_waits_for_the_header_does_not_come_up_without(self, lab: Lab) -> None:
        port = await started(lab, Postfix(proxy_protocol=True))
        silent = backend("p", "a", port=port, check=CheckSettings(timeout_s=0.5))
        (result,) = await checked(silent, rounds=1)
        assert not result.passed
        assert result.text.startswith("no greeting within 0.")


class TestXclientAndXforward:
    async def test_a_server_that_allows_them_passes(self, lab: Lab) -> None:
        postfix = Postfix(xclient_hosts="127.0.0.0/8")
        port = await started(lab, postfix)
        found = await checked(of(port, XCLIENT), of(port, XFORWARD))
        assert {(result.passed, result.identity) for result in found} == {(True, True)}
        assert found[0].seen is not None
        assert b"XCLIENT" in found[0].seen.offers
        await quit_logged(postfix, len(found))
        assert postfix.log_lines("warning") == []

    @pytest.mark.parametrize("level", [CheckLevel.TCP, CheckLevel.BANNER, CheckLevel.EHLO])
    async def test_a_server_that_does_not_lacks_the_identity_and_hears_quit(
        self, lab: Lab, level: CheckLevel
    ) -> None:
        postfix = Postfix()
        port = await started(lab, postfix)
        found = await checked(of(port, XCLIENT, level))
        assert {(result.text, result.identity) for result in found} == {
            ("identity: does not offer XCLIENT", False)
        }
        await quit_logged(postfix, len(found))
        assert postfix.log_lines("lost connection") == []


class TestTls:
    async def test_required_and_verified_against_a_private_authority(self, lab: Lab, files: Files) -> None:
        postfix = Postfix(tls=files.server, tls_level="encrypt")
        port = await started(lab, postfix)
        found = await checked(backend("p", "a", port=port, tls=files.tls()))
        assert {result.passed for result in found} == {True}
        assert found[0].seen is not None
        assert (found[0].seen.tls, b"STARTTLS" in found[0].seen.offers) == ("TLSv1.3", False)
        assert found[0].seen.certificate_expires is not None
        await quit_logged(postfix, len(found))
        assert postfix.log_lines("warning") == []

    async def test_implicit(self, lab: Lab, files: Files) -> None:
        postfix = Postfix(tls=files.server, smtpd_options=["smtpd_tls_wrappermode=yes"])
        port = await started(lab, postfix)
        found = await checked(backend("p", "a", port=port, tls=files.tls(BackTlsMode.IMPLICIT)))
        assert {result.passed for result in found} == {True}
        await quit_logged(postfix, len(found))
        assert postfix.log_lines("warning") == []

    async def test_exim_and_its_private_authority(self, lab: Lab, files: Files) -> None:
        port = await started(lab, Exim(tls=files.server))
        found = await checked(backend("p", "a", port=port, tls=files.tls()))
        assert {result.passed for result in found} == {True}

    async def test_a_wrong_authority_and_a_wrong_name_are_told(self, lab: Lab, files: Files) -> None:
        port = await started(lab, Postfix(tls=files.server, tls_level="encrypt"))
        wrong = BackTlsSettings(BackTlsMode.REQUIRED, ca=files.other_ca, server_name="mx1.test")
        found = await checked(
            backend("p", "authority", port=port, tls=wrong),
            backend("p", "name", port=port, tls=files.tls(name="mx2.test")),
        )
        for result in found:
            assert not result.passed
            assert result.text.startswith("TLS: certificate verify failed")

    async def test_a_server_without_tls(self, lab: Lab, files: Files) -> None:
        port = await started(lab, Postfix())
        found = await checked(
            backend("p", "required", port=port, tls=files.tls()),
            backend("p", "implicit", port=port, tls=files.tls(BackTlsMode.IMPLICIT)),
            backend("p", "opportunistic", port=port, tls=BackTlsSettings(BackTlsMode.OPPORTUNISTIC)),
            rounds=1,
        )
        assert [(result.passed, result.text.split(" ")[0]) for result in found] == [
            (False, "TLS:"),
            (False, "TLS:"),
            (True, "250"),
        ]
        assert found[0].text == "TLS: does not offer STARTTLS"


class Events(list[Event]):
    """What a balancer said; until_up() waits for a backend."""

    def __init__(self) -> None:
        super().__init__()
        self._told = asyncio.Event()

    def take(self, event: Event) -> None:
        self.append(event)
        self._told.set()

    async def until_up(self) -> None:
        async with asyncio.timeout(10):
            while not any(isinstance(event, BackendChanged) and event.new == "up" for event in self):
                self._told.clear()
                await self._told.wait()


@asynccontextmanager
async def balancer(*backends: BackendSettings) -> AsyncIterator[tuple[Supervisor, Events]]:
    events = Events()
    traffic = TrafficSettings("lb1.test", (listener("mx", "p"),), (pool("p", *backends),))
    settings = Settings(traffic, shutdown=ShutdownSettings(delay_s=0, drain_s=0))
    supervisor = Supervisor(settings, emit=events.take)
    await supervisor.start()
    try:
        yield supervisor, events
    finally:
        await supervisor.stop(0)


async def test_a_backend_that_does_not_offer_xclient_gets_no_mail_and_status_says_why(lab: Lab) -> None:
    lacking = Postfix()
    port = await started(lab, lacking)
    async with balancer(of(port, XCLIENT)) as (supervisor, _):
        client = await Client.at(supervisor.bound["mx"][0])
        assert (await client.reply()).startswith("421 4.3.2")
        client.close()
        status = await supervisor.status()
        (view,) = status.pools[0].backends
        assert (view.state, view.usable, view.last_resort) == ("unproven", False, False)
        assert view.reason == "identity: does not offer XCLIENT"
        assert [(each.severity, each.where, each.anchor) for each in status.problems] == [
            ("failing", "mx", "listener-unusable"),
            ("degraded", f"p/{view.name}", "identity-unproven"),
        ]
        assert lacking.accepted() == []


async def test_mail_goes_to_the_one_that_does_and_the_other_is_left_alone(lab: Lab) -> None:
    lacking, offering = Postfix("lacking"), Postfix("offering", xclient_hosts="127.0.0.0/8")
    bad = backend("p", "bad", port=await started(lab, lacking), identity=XCLIENT)
    good = backend("p", "good", port=await started(lab, offering), identity=XCLIENT)
    async with balancer(bad, good) as (supervisor, _):
        client = await Client.at(supervisor.bound["mx"][0])
        await client.reply()
        await client.say("EHLO c.test")
        for _ in range(4):
            assert (await client.send()).startswith("250")
        client.close()
    await asyncio.to_thread(offering.wait_accepted, 4)
    assert lacking.accepted() == []
    assert "MAIL" not in lacking.log_text()


async def test_a_wrong_authority_takes_down_that_backend_and_no_other(lab: Lab, files: Files) -> None:
    postfix = Postfix(tls=files.server, tls_level="encrypt")
    port = await started(lab, postfix)
    wrong = BackTlsSettings(BackTlsMode.REQUIRED, ca=files.other_ca, server_name="mx1.test")
    backends = (
        backend("p", "bad", port=port, tls=wrong),
        backend("p", "good", port=port, tls=files.tls()),
    )
    async with balancer(*backends) as (supervisor, events):
        status = await supervisor.status()
        assert [each.state for each in status.pools[0].backends] == ["down", "up"]
        (problem,) = status.problems
        assert (problem.where, problem.anchor) == ("p/bad", "tls-backend")
        assert "certificate verify failed" in problem.text
        client = await Client.at(supervisor.bound["mx"][0])
        await client.reply()
        await client.say("EHLO c.test")
        assert (await client.send()).startswith("250")
        client.close()
        changes = [event for event in events if isinstance(event, BackendChanged)]
        assert [(event.backend, event.new) for event in changes] == [("bad", "down"), ("good", "up")]


async def test_a_ca_file_that_is_put_right_brings_the_backend_up_without_a_reload(
    lab: Lab, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_watch, "LOOK_S", 0.1)
    port = await started(lab, Postfix(tls=files.server, tls_level="encrypt"))
    right = Path(files.ca).read_bytes()
    Path(files.ca).write_bytes(Path(files.other_ca).read_bytes())
    check = CheckSettings(interval_s=0.2, fast_interval_s=0.1, timeout_s=2)
    async with balancer(backend("p", "a", port=port, tls=files.tls(), check=check)) as (supervisor, events):
        assert (await supervisor.pools())[0].backends[0].state == "down"
        Path(files.ca).write_bytes(right)
        await events.until_up()
        assert (await supervisor.status()).problems == []
