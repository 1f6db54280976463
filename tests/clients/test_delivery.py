"""Every client delivers through every kind of listener: once, to the octet, protected where it should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from tests.clients.front import DELIVERY, HOST, NAME, Front, Tls
from tests.clients.mail import Mail
from tests.clients.programs import HELO, PROXY_SOURCE, Client, Refused, Swaks
from tests.clients.store import Store
from tests.lab.fixtures import require


@pytest.mark.parametrize("kind", DELIVERY)
def test_a_message_arrives_once_with_its_body(client: Client, kind: str, front: Front, store: Store) -> None:
    door = front.door(kind, sends_header=client.sends_header)
    mail = Mail()
    client.send(door, mail)
    received = store.only(mail).received()
    source = PROXY_SOURCE if door.header else HOST
    protocol = "ESMTP" if door.tls is Tls.NONE else "ESMTPS"
    assert received.startswith(f"from {HELO} ([{source}]) by {NAME} (smtplb) with {protocol} id ")


def test_where_tls_is_offered_only_a_client_may_do_without(
    client: Client, front: Front, store: Store
) -> None:
    mail = Mail()
    client.send(replace(front.door("starttls"), tls=Tls.NONE), mail)
    assert " with ESMTP id " in store.only(mail).received()


def test_where_tls_is_required_a_client_without_it_is_refused(
    client: Client, front: Front, store: Store
) -> None:
    mail = Mail()
    with pytest.raises(Refused, match=r"\b530\b"):
        client.send(replace(front.door("starttls-required"), tls=Tls.NONE), mail)
    assert store.of(mail) == []


@pytest.mark.parametrize("kind", ["starttls", "implicit"])
def test_clients_do_verify_our_certificate(
    client: Client, kind: str, front: Front, store: Store, tmp_path: Path
) -> None:
    """Else the tests above would not show that ours can be verified."""
    mail, foreign = Mail(), tmp_path / "foreign.pem"
    trustme.CA(key_type=trustme.KeyType.ECDSA).cert_pem.write_to_path(str(foreign))
    with pytest.raises(Refused, match=r"(?i)certificate|verif"):
        client.send(replace(front.door(kind), ca=str(foreign)), mail)
    assert store.of(mail) == []


def test_a_proxy_header_from_one_who_is_not_trusted_gets_nothing_through(front: Front, store: Store) -> None:
    mail, swaks = Mail(), Swaks()
    require(swaks)
    with pytest.raises(Refused, match=r"\b5\d\d\b"):
        swaks.send(replace(front.door("plain"), header=True), mail)
    assert store.of(mail) == []
