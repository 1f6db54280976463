"""One backend and one balancer for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.front import Front
from tests.clients.mail import Login
from tests.clients.programs import CLIENTS, Client
from tests.clients.store import Store
from tests.lab.fixtures import Lab, require


@pytest.fixture(scope="module")
def account() -> Login:
    """The only one that the backend knows."""
    return Login("carla@clients.test", "s3cret-of-tests")


@pytest.fixture(scope="module")
def store(account: Login) -> Iterator[Store]:
    with Store(account) as started:
        yield started


@pytest.fixture(scope="module")
def front(module_lab: Lab, store: Store) -> Iterator[Front]:
    """Sees to it that the balancer had nothing to complain about."""
    started = Front(module_lab, store)
    yield started
    assert started.balancer.complaints() == []


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def client(request: pytest.FixtureRequest) -> Client:
    """Each of them; skips where it is missing."""
    chosen: Client = request.param
    require(chosen)
    return chosen
