"""Balancers and embedded backends for one test, and a minute of checks that runs beside all other tests.

Balancers and embedded backends are ours: no real mail server is needed for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

import pytest

from smtplb.cli.embedded import EmbeddedBackend, Fault, Verb
from tests.e2e.balancer import Smtplb
from tests.e2e.checked import CheckedPostfix
from tests.lab import Postfix
from tests.lab.fixtures import Lab

Begin = Callable[[Smtplb], Smtplb]
Embed = Callable[..., Awaitable[EmbeddedBackend]]

MINUTE_TEST = "test_a_minute_of_checks_leaves_no_lost_connection_in_the_log_of_postfix"


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts a balancer, ends it behind the test, and sees to it that it had nothing to complain about."""
    programs = Lab()
    balancers: list[Smtplb] = []

    def start(balancer: Smtplb) -> Smtplb:
        balancers.append(balancer)
        return programs.start(balancer)

    try:
        yield start
        complaints = [line for balancer in balancers for line in balancer.complaints()]
    finally:
        programs.close()
    assert complaints == []


@pytest.fixture
async def embed() -> AsyncIterator[Embed]:
    """Starts an embedded backend; its id header is Message-ID."""
    backends: list[EmbeddedBackend] = []

    async def start(name: str, faults: Mapping[Verb, Fault] | None = None) -> EmbeddedBackend:
        backend = EmbeddedBackend(name=name, faults=faults, id_header="Message-ID")
        await backend.start()
        backends.append(backend)
        return backend

    yield start
    await asyncio.gather(*(backend.kill() for backend in backends))
    assert [bug for backend in backends for bug in backend.bugs] == []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test that looks back at a minute goes last: by then the minute is over, and nobody has waited for it."""
    items.sort(key=lambda item: item.name == MINUTE_TEST)


@pytest.fixture(scope="session", autouse=True)
def minute_of_checks(request: pytest.FixtureRequest) -> Iterator[CheckedPostfix | None]:
    """Begins with the first test of this folder. None: the minute was not asked for, or there is no Postfix."""
    wanted = any(item.name == MINUTE_TEST for item in request.session.items)
    if not wanted or Postfix.available() is not None:
        yield None
        return
    programs = Lab()
    try:
        yield CheckedPostfix(programs, "2s")
    finally:
        programs.close()
