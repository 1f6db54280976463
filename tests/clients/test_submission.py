"""Clients authenticate at the backend, through us, under TLS."""

from __future__ import annotations

from base64 import b64encode

import pytest

from tests.clients.front import SUBMISSION, Front
from tests.clients.mail import Login, Mail
from tests.clients.programs import Client, Refused, Smtplib
from tests.clients.store import Store
from tests.lab import wait_until


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("kind", SUBMISSION)
def test_a_login_reaches_the_backend_and_so_does_the_message(
    client: Client, kind: str, mechanism: str, front: Front, store: Store, account: Login
) -> None:
    mail = Mail()
    client.send(front.door(kind), mail, account, mechanism)
    kept = store.only(mail)
    assert kept.login == account.user
    assert " with ESMTPSA id " in kept.received()


def test_a_wrong_password_is_the_backends_to_refuse(
    client: Client, front: Front, store: Store, account: Login
) -> None:
    mail = Mail()
    with pytest.raises(Refused, match=r"\b(535|[Ll]ogin denied)\b"):
        client.send(front.door("submission"), mail, Login(account.user, "wrong-one"))
    assert store.of(mail) == []


def test_nobody_sends_there_without_a_login(client: Client, front: Front, store: Store) -> None:
    mail = Mail()
    with pytest.raises(Refused, match=r"\b(530|550)\b"):
        client.send(front.door("submission"), mail)
    assert store.of(mail) == []


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_no_log_has_the_password(mechanism: str, front: Front, store: Store, account: Login) -> None:
    mail, balancer = Mail(f"secret-{mechanism.lower()}"), front.balancer
    Smtplib().send(front.door("submission"), mail, account, mechanism)
    store.only(mail)
    wait_until(lambda: mail.recipient in balancer.log.read_text(), "the transaction is in the log")
    said = balancer.log.read_text() + balancer.output()
    plain = f"\0{account.user}\0{account.password}"
    for secret in (
        account.password,
        *(b64encode(text.encode()).decode() for text in (account.password, plain)),
    ):
        assert secret not in said
