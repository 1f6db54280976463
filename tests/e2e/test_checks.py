"""Checks leave no trace of lost connections in a mail server's log."""

from __future__ import annotations

import time

from tests.e2e.balancer import FIGURES
from tests.e2e.checked import MINUTE_S, CheckedPostfix
from tests.lab import wait_until
from tests.lab.fixtures import Lab


def test_checks_five_times_a_second_leave_no_lost_connection_in_the_log_of_postfix(lab: Lab) -> None:
    checked = CheckedPostfix(lab, "200ms")
    wait_until(lambda: min(checked.passed().values()) >= 40, "40 checks at each level", 60)
    assert set(checked.failed().values()) == {0}
    FIGURES.info("%d checks, each with QUIT", checked.end())


def test_a_minute_of_checks_leaves_no_lost_connection_in_the_log_of_postfix(
    lab: Lab, minute_of_checks: CheckedPostfix | None
) -> None:
    """The minute began before the first test of this folder; this one is the last (conftest.py)."""
    checked = minute_of_checks or CheckedPostfix(lab, "2s")
    wait_until(lambda: time.monotonic() - checked.began >= MINUTE_S, "a minute is over", MINUTE_S + 5)
    assert min(checked.passed().values()) >= MINUTE_S / 2 - 2
    FIGURES.info("%d checks in %.0f s, each with QUIT", checked.end(), time.monotonic() - checked.began)
