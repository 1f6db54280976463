"""Checks against real mail servers: they pass, and nothing in the servers' logs complains about them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from smtplb.controlplane.prober import Prober
from smtplb.controlplane.registry import CheckResult
from smtplb.dataplane.deadlines import Deadlines
from smtplb.messages import BackendKey
from smtplb.settings import CheckLevel
from tests.controlplane.things import backend
from tests.lab import Exim, Mta, Postfix, Sendmail, wait_until
from tests.lab.fixtures import Lab

LEVELS = (CheckLevel.TCP, CheckLevel.BANNER, CheckLevel.EHLO)
ROUNDS = 5


@dataclass
class Checks:
    """What ROUNDS checks at each level found."""

    passed: Counter[str] = field(default_factory=Counter)
    texts: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)


async def check_often(port: int) -> Checks:
    """Checks at every level, ten a second."""
    found = Checks()
    enough = asyncio.Event()

    def report(key: BackendKey, result: CheckResult) -> None:
        found.texts.add(result.text)
        if result.passed:
            found.passed[key[1]] += 1
        else:
            found.failed.append(result.text)
        if all(found.passed[level] >= ROUNDS for level in LEVELS) or found.failed:
            enough.set()

    loop = asyncio.get_running_loop()
    deadlines = Deadlines.of(loop)
    prober = Prober(
        [backend("p", level.value, port=port, level=level) for level in LEVELS],
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
    return found


async def logged(count: Callable[[], int], found: Checks) -> None:
    """A server may write its line after the 221."""
    wanted = sum(found.passed.values())
    await asyncio.to_thread(wait_until, lambda: count() >= wanted, f"{wanted} lines in the log")


@pytest.mark.parametrize("mta", [Postfix, Exim, Sendmail])
async def test_every_level_passes_and_says_what_the_server_said(lab: Lab, mta: type[Mta]) -> None:
    server = await asyncio.to_thread(lab.start, mta())
    found = await check_often(server.port)
    assert found.failed == []
    assert {text[:4] for text in found.texts} == {"conn", "220 ", "250 "}


async def test_postfix_logs_no_lost_connection(lab: Lab) -> None:
    postfix = await asyncio.to_thread(lab.start, Postfix())
    found = await check_often(postfix.port)
    await logged(lambda: len(postfix.log_lines("ehlo=1 quit=1 commands=2")), found)
    assert postfix.log_lines("lost connection") == []
    assert postfix.log_lines("warning") == []


async def test_exim_sees_every_check_end_with_quit(lab: Lab) -> None:
    exim = await asyncio.to_thread(lab.start, Exim())
    found = await check_often(exim.port)
    await logged(lambda: len(exim.log_lines("closed by QUIT")), found)
    assert exim.log_lines("lost") == []
    assert exim.log_lines("unexpected") == []


async def test_sendmail_hears_quit_at_every_check(lab: Lab) -> None:
    sendmail = await asyncio.to_thread(lab.start, Sendmail(transcript=True))
    found = await check_often(sendmail.port)
    await logged(lambda: sendmail.transcript_text().count("<<< QUIT"), found)
    assert "lost" not in sendmail.transcript_text()
