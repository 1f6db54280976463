"""`smtplb validate`: mistakes on stderr and exit 1, or what the file does and exit 0."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtplb.cli.validate import describe, validate
from smtplb.settings import Condition, Domains
from tests.config.support import SMALLEST, with_route, write_files_named_in

PUBLIC = """\
hostname: lb1.example.net
networks: {inside: [10.0.0.0/8, "fd00::/8"]}
listeners:
  - name: mx
    bind: ":25"
    to: site
    accept:
      - {recipient_domain: [example.org, .example.org]}
      - {client: inside, not: {sender: <>}}
  - {name: open, bind: "192.0.2.1:26", to: east, accept: anyone}
groups:
  site: {mode: active-passive, pools: [east, west], failback: {mode: manual}}
pools:
  east:
    policy: weighted
    backends: [{name: mx1, address: "10.0.0.1:25", weight: 2}, {address: "10.0.0.2:25", backup: true}]
  west: {backends: ["127.0.0.1:25"], check: {level: off}}
  spare: {backends: ["10.2.0.1:25"]}
"""

ROUTED = """\
hostname: lb1.example.net
listeners:
  - name: mx
    bind: ":25"
    to: inbound
    tls: {mode: starttls, certificates: {certificate: mx.pem, key: mx.key}}
    proxy_protocol_from: 10.0.9.1
    xclient_from: 10.0.9.2
    clients: {deny: 192.0.2.0/24}
    accept: {recipient_domain: example.org}
  - name: submission
    bind: ["192.0.2.1:587", "unix:/run/sub"]
    to: told
    auth: relay
    tls:
      mode: starttls-required
      min: TLS1.3
      certificates: {certificate: mx.pem, key: mx.key}
      client_certificates: optional
      client_ca: ca.pem
  - {name: local, bind: "127.0.0.1:26", auth: relay, auth_without_tls: true, to: told, clients: {allow: loopback}}
routes:
  inbound:
    - {when: {recipient_domain: lab.test, tls: true}, to: lab}
    - {when: {recipient_domain: old.test}, refuse: "550 5.1.2 gone"}
    - {to: site}
groups:
  site: {mode: active-active, pools: [{pool: told, share: 60}, {pool: lab, share: 40}]}
pools:
  lab: {backends: ["10.0.0.1:25", {address: "10.0.0.2:25", tls: {mode: implicit, verify: false}}]}
  told: {identity: xclient, tls: {mode: required}, backends: ["10.0.0.3:25"]}
"""


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(validate, arguments, env=env)


def test_a_good_file_is_summed_up_and_the_relay_question_answered(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(PUBLIC)
    result = run(str(path))
    assert (result.exit_code, result.stderr) == (0, "")
    assert (
        result.stdout
        == f"""\
{path}: fine. 2 listeners, 3 pools, 4 backends; this host is lb1.example.net

listener mx: 0.0.0.0:25, [::]:25
  no TLS
  to group site, active-passive; load goes on below 50%, back by hand
    pool east: 2 backends (1 backup), weighted, check ehlo every 10s, TLS where offered, identity none
    pool west: 1 backend, round-robin, no checks, no TLS, identity none
  mail is taken
    if the recipient is in example.org, any subdomain of example.org
    if the client is in 10.0.0.0/8, fd00::/8 and not (the sender is <>)

listener open: 192.0.2.1:26
  no TLS
  to pool east: 2 backends (1 backup), weighted, check ehlo every 10s, TLS where offered, identity none
  mail is taken from ANYONE, for anywhere (accept: anyone): the backends must refuse to relay

reached by no listener: pool spare
"""
    )


def test_tls_fronts_routes_and_identities_are_in_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(ROUTED)
    write_files_named_in(ROUTED, tmp_path)
    result = run(str(path))
    assert (result.exit_code, result.stderr) == (0, "")
    lab = (
        "pool lab: 2 backends, round-robin, check ehlo every 10s, "
        "TLS where offered / TLS implicit (NOT verified), identity none"
    )
    told = (
        "pool told: 1 backend, round-robin, one backend a session, check ehlo every 10s, "
        "TLS required (verified), identity xclient"
    )
    assert (
        result.stdout.partition("\n\n")[2]
        == f"""\
listener mx: 0.0.0.0:25, [::]:25
  TLS: starttls, TLS1.2 or later, {tmp_path}/mx.pem
  no clients in 192.0.2.0/24
  clients are as 10.0.9.1/32 says with PROXY
  clients are as 10.0.9.2/32 says with XCLIENT
  to route inbound
    if the recipient is in lab.test and TLS is on: {lab}
    if the recipient is in old.test: refused, 550 5.1.2 gone
    else: group site, active-active; load goes on below 50%, back after 1m
      {told} (share 60)
      {lab} (share 40)
    recipients of a message whose way is another are deferred with 452 (other_route: defer)
  mail is taken
    if the recipient is in example.org

listener submission: 192.0.2.1:587, unix:/run/sub
  TLS: starttls-required, TLS1.3 or later, client certificates optional, {tmp_path}/mx.pem
  AUTH by the backends
  to {told}
  mail is taken from anyone: the backends see each client and decide (identity)

listener local: 127.0.0.1:26
  no TLS
  AUTH by the backends, also without TLS
  only clients in 127.0.0.0/8, ::1/128
  to {told}
  mail is taken from this host only: no other can connect
"""
    )


def test_what_follows_the_first_recipient_is_in_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(with_route("{when: {helo: a.test}, to: q}, {to: p}", 'bind: "127.0.0.1:587", to: r'))
    assert "go along with the first (other_route: follow)" in run(str(path)).stdout
    path.write_text(with_route('{when: {helo: a.test}, refuse: "550 5.7.1 no"}, {to: p}'))
    assert "other_route" not in run(str(path)).stdout
    path.write_text(with_route("{to: p}"))
    assert "\n    pool p: 1 backend" in run(str(path)).stdout


def test_what_keeps_backends_from_too_much_is_in_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    limited = SMALLEST.replace(
        '"127.0.0.1:2602"]',
        '{address: "127.0.0.1:2602", max_connections: 1}]\n    mta: postfix\n    eject: off',
    )
    path.write_text(limited + "workers: 3\nhostname: lb1\n")
    lines = run(str(path)).stdout.splitlines()
    assert lines[0].endswith("2 backends; this host is lb1; 3 workers")
    assert lines[4].endswith(
        "identity none, at most 40 connections each / at most 1 connection each, no ejection"
    )
    path.write_text(limited.replace("mta: postfix", "mta: sendmail"))
    assert "connections unlimited / at most 1 connection each" in run(str(path)).stdout


def test_without_accept_only_this_host_may_send(tmp_path: Path) -> None:
    (tmp_path / "lb.yaml").write_text(SMALLEST)
    assert "mail is taken from this host only" in run(str(tmp_path / "lb.yaml")).stdout


def test_all_mistakes_go_to_stderr_and_the_exit_status_is_1(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(SMALLEST.replace("127.0.0.1:2525", "0.0.0.0:25") + "user: a\nhostname: a\n")
    result = run(str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert [line.split(": ")[0] for line in result.stderr.splitlines()] == [
        f"{path}:2:5",
        f"{path}:6:1",
        f"{path}:7:11",
        str(path),
    ]
    assert result.stderr.endswith("3 mistakes. Nothing was started or changed.\n")


def test_the_file_may_come_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "lb.yaml").write_text(SMALLEST)
    assert run(env={"SMTPLB_CONFIG": str(tmp_path / "lb.yaml")}).exit_code == 0


def test_a_file_that_is_not_there_is_no_usage_error(tmp_path: Path) -> None:
    result = run(str(tmp_path / "nope.yaml"))
    assert result.exit_code == 1
    assert "No such file" in result.stderr


def test_the_default_file_is_named_in_the_help() -> None:
    assert "/etc/smtplb/smtplb.yaml" in run("--help").stdout


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (Condition(), "anything"),
        (
            Condition(recipient_domain=Domains(exact=frozenset(f"d{n}.test" for n in range(8)))),
            "the recipient is in d0.test, d1.test, d2.test, d3.test, d4.test, d5.test and 2 more",
        ),
        (Condition(recipient_domain=Domains()), "the recipient is in nothing (an empty list)"),
        (
            Condition(helo=Domains(exact=frozenset({"a.test"})), size_over_bytes=1024),
            "HELO is a.test and the message is larger than 1KiB",
        ),
        (
            Condition(
                sender=frozenset({"", "a@b.test"}), sender_domain=Domains(suffixes=frozenset({"b.test"}))
            ),
            "the sender is in any subdomain of b.test and the sender is <>, a@b.test",
        ),
        (Condition(recipient=frozenset({"a@b.test"})), "the recipient is a@b.test"),
        (Condition(tls=True, auth=True), "TLS is on and the client is authenticated"),
        (Condition(tls=False, auth=False), "TLS is off and the client is not authenticated"),
    ],
)
def test_conditions_in_words(condition: Condition, words: str) -> None:
    assert describe(condition) == words
