"""What all tests share: uvloop under every asynchronous test, how much a run tries, and the lab of real programs."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Generator, Iterator, Mapping

import pytest
import uvloop

from tests.effort import register_profiles
from tests.lab.fixtures import LAB_IS_REQUIRED, Lab

LAB_FIXTURES = frozenset({"lab", "module_lab"})

register_profiles()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Data path and tests alike run on uvloop: transports of the two loops differ in buffering and closing."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Real programs for one test; a test that asks for it is marked `mta`."""
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def module_lab() -> Iterator[Lab]:
    """Real programs that the tests of one file share."""
    lab = Lab()
    yield lab
    lab.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if LAB_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.mta)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where the lab is required, a test that needs it must not skip, for whatever reason."""
    report = yield
    if (
        LAB_IS_REQUIRED
        and report.skipped
        and item.get_closest_marker("mta")
        and not hasattr(report, "wasxfail")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped although SMTPLB_REQUIRE_MTAS is set: {report.longrepr}"
    return report


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector stands still: what is left is left for it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
