"""Mail servers as clients: Postfix with pipelining and TLS, Exim with CHUNKING, in front of a Postfix that has both."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Iterator

import pytest

from tests.clients.exim import EximClient
from tests.clients.front import DELIVERY, HOST, Door, Front, Tls
from tests.clients.mail import DOMAIN, Mail
from tests.clients.programs import TIMEOUT_S
from tests.clients.store import Store
from tests.e2e.balancer import pool
from tests.lab import Postfix, wait_until
from tests.lab.fixtures import Lab

LEVELS = {Tls.NONE: "none", Tls.STARTTLS: "may", Tls.IMPLICIT: "encrypt"}
BEHIND = "behind"  # the listener that leads to a Postfix instead of the store


@pytest.fixture(scope="module")
def backend(module_lab: Lab, store: Store) -> Postfix:
    """Hands on to the store what it takes, so that its body can be looked at."""
    return module_lab.start(Postfix("postfix-backend", transport=f"smtp:[{HOST}]:{store.port}"))


@pytest.fixture(scope="module")
def front(module_lab: Lab, store: Store, backend: Postfix) -> Iterator[Front]:
    behind = pool(
        backend, connections={"idle": 0}
    )  # ended at once: Postfix counts commands when a session ends
    started = Front(module_lab, store, {BEHIND: behind})
    yield started
    assert started.balancer.complaints() == []


@pytest.fixture(scope="module")
def postfix(module_lab: Lab, front: Front) -> Postfix:
    """As client. The host of a recipient is the kind of the listener that its mail goes to."""
    doors = [front.door(kind) for kind in [*DELIVERY, BEHIND]]
    ways = [f"{{ {door.name}.{DOMAIN} = {_service(door)}:[{HOST}]:{door.port} }}" for door in doors]
    levels = [f"{{ [{HOST}]:{door.port} = {_level(door)} }}" for door in doors]
    wrapped = ["smtps unix - - n - - smtp", "    -o smtp_tls_wrappermode=yes"]
    told = ["told unix - - n - - smtp -v"]  # tells the whole dialogue
    return module_lab.start(
        Postfix(
            "postfix-client",
            main_cf={
                "transport_maps": f"inline:{{ {', '.join(ways)} }}",
                "smtp_tls_policy_maps": f"inline:{{ {', '.join(levels)} }}",
                "smtp_tls_CAfile": str(front.ca),
                "smtp_tls_loglevel": "1",
            },
            master_cf=[*wrapped, *told],
        )
    )


def _service(door: Door) -> str:
    if door.tls is Tls.IMPLICIT:
        return "smtps"
    return "told" if door.name == "plain" else "smtp"


def _level(door: Door) -> str:
    return "encrypt" if door.name.endswith("starttls-required") else LEVELS[door.tls]


def _hand_to(postfix: Postfix, mail: Mail) -> None:
    with smtplib.SMTP(HOST, postfix.port, timeout=TIMEOUT_S) as submission:
        submission.sendmail(mail.sender, [mail.recipient], mail.content, ["BODY=8BITMIME"])


def _statuses(postfix: Postfix, mail: Mail) -> list[str]:
    return [
        status
        for message in postfix.messages().values()
        if message.message_id == mail.message_id
        for _, status, _ in message.deliveries
    ]


@pytest.mark.parametrize("kind", DELIVERY)
def test_postfix_delivers_once_with_tls_where_there_is_tls(
    kind: str, postfix: Postfix, front: Front, store: Store
) -> None:
    door, mail = front.door(kind), Mail(kind)
    _hand_to(postfix, mail)
    received = store.only(mail).received()
    wait_until(lambda: bool(_statuses(postfix, mail)), "Postfix has written down what became of it")
    assert _statuses(postfix, mail) == ["sent"]
    protected = postfix.log_lines(f"TLS connection established to {HOST}[{HOST}]:{door.port}:")
    assert received.startswith(f"from {postfix.name}.lab.test ([{HOST}]) by ")
    if door.tls is Tls.NONE:
        assert " with ESMTP id " in received
        assert protected == []
    else:
        assert " with ESMTPS id " in received
        assert protected
        assert all(
            ": Trusted TLS connection" in line and ": TLSv1.3 with cipher " in line for line in protected
        )


def test_postfix_pipelines_the_envelope(postfix: Postfix, front: Front, store: Store) -> None:
    mail = Mail("plain")
    before = len(postfix.log_lines())
    _hand_to(postfix, mail)
    store.only(mail)
    wait_until(lambda: bool(_statuses(postfix, mail)), "Postfix has written down what became of it")
    dialogue = "\n".join(postfix.log_lines()[before:])
    place = rf" {re.escape(HOST)}\[{re.escape(HOST)}\]:{front.door('plain').port}: "
    spoken = [match[1] + match[2] for match in re.finditer(rf": ([<>]){place}(\w+)", dialogue)]
    assert spoken[spoken.index(">MAIL") :][:6] == [">MAIL", ">RCPT", ">DATA", "<250", "<250", "<354"]


def test_postfix_through_us_to_postfix(
    postfix: Postfix, backend: Postfix, front: Front, store: Store
) -> None:
    mail = Mail(BEHIND)
    _hand_to(postfix, mail)
    assert " with ESMTPS id " in store.only(mail).received()


@pytest.mark.parametrize("kind", DELIVERY)
def test_exim_delivers_in_chunks_to_a_backend_without_chunking(
    kind: str, front: Front, store: Store, module_lab: Lab
) -> None:
    door, mail = front.door(kind), Mail(kind)
    module_lab.require(EximClient)
    with EximClient(door) as exim:
        exim.send(mail)
        delivery = exim.delivery()
    assert " => " in delivery, delivery
    assert " K " in delivery, delivery
    protocol = "ESMTP" if door.tls is Tls.NONE else "ESMTPS"
    assert f" with {protocol} id " in store.only(mail).received()


def test_exim_delivers_in_chunks_to_a_backend_with_chunking(
    backend: Postfix, front: Front, store: Store, module_lab: Lab
) -> None:
    mail = Mail(BEHIND)
    module_lab.require(EximClient)
    with EximClient(front.door(BEHIND)) as exim:
        exim.send(mail)
        delivery = exim.delivery()
    assert " => " in delivery, delivery
    assert " K " in delivery, delivery
    assert " with ESMTPS id " in store.only(mail).received()
    wait_until(lambda: bool(backend.log_lines(" bdat=")), "the backend has counted BDAT")
