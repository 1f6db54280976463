"""The whole file: our name, the small sections, all mistakes at once."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import pytest

from smtplb.settings import (
    Address,
    AdminSettings,
    LogSettings,
    ReplaySettings,
    Settings,
    ShutdownSettings,
    TrafficSettings,
)
from tests.config.support import SMALLEST, errors_of, keys_of, only_error, settings_of, with_listener

TOKEN = "0123456789abcdef"
MIB = 1024 * 1024


def test_eight_different_mistakes_are_eight_errors_with_line_and_column() -> None:
    errors = errors_of("""\
        hostname: lb1.example.net
        user: smtplb
        listeners:
          - {name: mx, bind: "0.0.0.0:25", to: site}
          - {name: mx, bind: "127.0.0.1:2525", to: site}
        groups:
          site: {mode: active-passive, pools: [east, wets]}
        pools:
          east:
            polcy: weighted
            backends: [10.0.0.1]
            check: {interval: 5}
          west:
            policy: weighted
            backends: [{address: "10.0.0.2:25", weight: -1}]
        """)
    assert [str(error).split(": ")[:2] for error in errors] == [
        ["lb.yaml:2:1", "user"],
        ["lb.yaml:4:5", "listeners.mx.accept"],
        ["lb.yaml:5:12", "listeners.mx.name"],
        ["lb.yaml:7:46", "groups.site.pools[1].pool"],
        ["lb.yaml:10:5", "pools.east.polcy"],
        ["lb.yaml:11:16", "pools.east.backends[0].address"],
        ["lb.yaml:12:23", "pools.east.check.interval"],
        ["lb.yaml:15:49", "pools.west.backends.10.0.0.2:25.weight"],
    ]


def test_the_small_sections_reach_the_settings(tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text(f"{TOKEN}\n")
    (tmp_path / "admin.token").chmod(0o640)
    settings = settings_of(
        SMALLEST
        + """
version: 1
hostname: lb1
shutdown: {delay: 0s, drain: 2m}
replay: {attempts: 2}
admin: {bind: "127.0.0.1:8025", socket: admin.sock, token_file: admin.token}
probes: {bind: "0.0.0.0:8026"}
log: {format: ecs, level: debug, destination: ./mail.log, addresses: hash}
""",
        tmp_path,
    )
    assert settings.traffic.hostname == "lb1"
    assert settings.traffic.attempts == 2
    assert settings.shutdown == ShutdownSettings(delay_s=0.0, drain_s=120.0)
    assert settings.admin == AdminSettings(Address("127.0.0.1", 8025), str(tmp_path / "admin.sock"), TOKEN)
    assert settings.probes_bind == Address("0.0.0.0", 8026)
    assert settings.log == LogSettings("ecs", "debug", str(tmp_path / "mail.log"), "hash")


# What is kept of mail under way.


def test_what_is_kept_of_mail_under_way_reaches_the_settings(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    settings = settings_of(
        SMALLEST
        + """
state_dir: state
replay: {memory: 64KiB, per_message: 10MiB, total: 100MiB, shared_memory: 1MiB}
in_doubt: {remember: 1h}
""",
        tmp_path,
    )
    directory = str(tmp_path / "state")
    assert settings.traffic.replay == ReplaySettings(64 * 1024, 10 * MIB, 100 * MIB, directory, MIB)
    assert settings.traffic.in_doubt_remember_s == 3600.0
    assert settings.traffic.attempts == TrafficSettings("", (), ()).attempts


def test_what_is_in_doubt_need_not_be_remembered() -> None:
    assert settings_of(SMALLEST + "in_doubt: {remember: 0s}\n").traffic.in_doubt_remember_s == 0.0


@pytest.mark.parametrize(
    "replay",
    [
        "memory: 50MiB",
        "per_message: 256KiB",
        "per_message: 1GiB",
        "total: 50MiB",
        "memory: 1MiB, per_message: 1MiB, total: 1MiB",
    ],
)
def test_a_budget_of_replay_may_be_as_large_as_the_next(replay: str) -> None:
    assert errors_of(SMALLEST + f"replay: {{{replay}}}\n") == ()


@pytest.mark.parametrize(
    ("replay", "key", "words"),
    [
        ("memory: 2MiB, per_message: 1MiB", "memory", "must not be more than per_message (1MiB)"),
        ("memory: 51MiB", "memory", "must not be more than per_message (50MiB)"),
        ("per_message: 255KiB", "per_message", "must not be less than memory (256KiB unless it is written)"),
        ("per_message: 2MiB, total: 1MiB", "per_message", "must not be more than total (1MiB)"),
        ("per_message: 2GiB", "per_message", "must not be more than total (1GiB)"),
        ("total: 49MiB", "total", "must not be less than per_message (50MiB unless it is written)"),
    ],
)
def test_a_budget_of_replay_has_room_for_the_one_before(replay: str, key: str, words: str) -> None:
    error = only_error(SMALLEST + f"replay: {{{replay}}}\n")
    assert (error.key, error.message) == (f"replay.{key}", words)


def test_budgets_of_replay_are_not_compared_with_mistakes() -> None:
    assert keys_of(SMALLEST + "replay: {memory: 1MB, per_message: 1KiB}\n") == ["replay.memory"]
    assert keys_of(SMALLEST + "replay: {memory: 90MiB, per_message: 1, attempts: 11}\n") == [
        "replay.per_message",
        "replay.attempts",
    ]


def test_a_state_directory_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for written, words in (
        ("nope", "there is no `"),
        ("file", "is not a directory"),
        ("file/below", "Not a directory"),
        ("[state]", "single text"),
    ):
        error = only_error(SMALLEST + f"state_dir: {written}\n", tmp_path)
        assert (error.key, words in error.message) == ("state_dir", True)


def test_nobody_else_may_write_into_the_state_directory(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for mode, lawful in ((0o700, True), (0o775, True), (0o777, False), (0o1777, False)):
        (tmp_path / "state").chmod(mode)
        errors = errors_of(SMALLEST + "state_dir: state\n", tmp_path)
        assert [error.key for error in errors] == ([] if lawful else ["state_dir"])
        assert lawful or "chmod o-w" in errors[0].message


def test_we_may_write_into_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, int]] = []

    def refuse(path: Path, mode: int) -> bool:  # root, who runs tests too, may do anything
        asked.append((path, mode))
        return False

    monkeypatch.setattr(os, "access", refuse)
    error = only_error(SMALLEST + "state_dir: .\n", tmp_path)
    assert (error.key, "cannot write into" in error.message) == ("state_dir", True)
    assert asked == [(tmp_path / ".", os.W_OK | os.X_OK)]


# Workers.


@pytest.mark.parametrize(("written", "expected"), [("1", 1), ("64", 64), ('"${WORKERS}"', 4)])
def test_a_number_of_workers(written: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERS", "4")
    assert settings_of(SMALLEST + f"workers: {written}\n").workers == expected


@pytest.mark.parametrize(("processors", "expected"), [({0}, 1), ({0, 2, 5}, 3), (set(range(200)), 64)])
def test_auto_is_a_worker_for_each_processor_that_we_may_use(
    processors: set[int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: processors)
    assert settings_of(SMALLEST + "workers: auto\n").workers == expected


@pytest.mark.parametrize("written", ["0", "65", "-1", "1.5", "atuo", "true", '"4"', "[4]"])
def test_workers_are_a_number_from_1_to_64_or_auto(written: str) -> None:
    error = only_error(SMALLEST + f"workers: {written}\n")
    assert error.key == "workers"
    assert error.message.endswith("from 1 to 64, or auto")


@pytest.mark.parametrize("workers", ["2", "auto"])
def test_workers_may_stay_on_their_processors(workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})  # auto is one worker here, elsewhere many
    settings = settings_of(SMALLEST + f"workers: {workers}\nworker_cpu_affinity: true\n")
    assert settings.worker_cpu_affinity


@pytest.mark.parametrize("workers", ["", "workers: 1\n"])
def test_one_worker_has_no_processor_of_its_own(workers: str) -> None:
    error = only_error(SMALLEST + f"{workers}worker_cpu_affinity: true\n")
    assert error.key == "worker_cpu_affinity"
    assert error.message.startswith("no effect with one worker")


# The rest.


def test_what_was_not_written_is_the_default_of_settings() -> None:
    settings = settings_of(SMALLEST)
    plain = Settings(traffic=settings.traffic, source="lb.yaml")
    assert settings == plain


def test_settings_can_be_handed_to_a_worker() -> None:
    settings = settings_of(SMALLEST)
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("version: 2", "version", "reads version 1"),
        ("version: true", "version", "reads version 1"),
        ("hostname: a b", "hostname", "not a host name"),
        ("hostname: [a]", "hostname", "single text"),
        ("shutdown: {delay: 5}", "shutdown.delay", "write 5s"),
        ("shutdown: {dlay: 5s}", "shutdown.dlay", "did you mean `delay`?"),
        ("shutdown: 5s", "shutdown", "must be a mapping"),
        ("replay: {attempts: 0}", "replay.attempts", "from 1 to 10"),
        ("replay: {memory: 256}", "replay.memory", "write 256B"),
        ("replay: {total: 0B}", "replay.total", "leaves no room"),
        ("in_doubt: {remember: 10}", "in_doubt.remember", "write 10s"),
        ("in_doubt: 10m", "in_doubt", "must be a mapping"),
        ("defaults: {pol: {}}", "defaults.pol", "did you mean `pool`?"),
        ("defaults: {pool: {backends: []}}", "defaults.pool.backends", "unknown key"),
        ("defaults: {pool: {check: {level: no}}}", "defaults.pool.check.level", "must be one of"),
        ('admin: {bind: ":8025"}', "admin.bind", "write one address, such as 0.0.0.0:8025"),
        ('admin: {bind: "unix:/run/a"}', "admin.bind", "TCP address"),
        ("admin: {token_file: nope}", "admin.token_file", "cannot read"),
        ("probes: {}", "probes.bind", "missing"),
        ("log: {format: json}", "log.format", "must be one of auto, text, ecs"),
        ("log: {destination: syslog}", "log.destination", "a path with a slash"),
        ("routes: []", "routes", "must be a mapping of names"),
        ("user: smtplb", "user", "not supported in this version"),
        ("listener: []", "listener", "did you mean `listeners`?"),
        ("in_dubt: {}", "in_dubt", "did you mean `in_doubt`?"),
        ("usr: smtplb", "usr", "`user` is meant? It is not supported in this version"),
        ("zzz: 1", "zzz", "known here are version, hostname"),
    ],
)
def test_mistakes_in_small_sections(section: str, key: str, words: str) -> None:
    errors = errors_of(SMALLEST + section + "\n")
    assert [(error.key, words in error.message) for error in errors] == [(key, True)]


def test_an_empty_mapping_misses_what_is_required() -> None:
    assert keys_of("{}") == ["listeners", "pools"]


# The token.


def test_a_token_without_a_bind_has_no_effect_and_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    error = only_error(SMALLEST + "admin: {token_file: token, socket: /run/a}\n", tmp_path)
    assert "no effect without admin.bind" in error.message


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (TOKEN, 0o604, "open to every user"),
        (TOKEN, 0o602, "open to every user"),
        (TOKEN[1:], 0o600, "fewer than 16"),
        (" " * 20, 0o600, "fewer than 16"),
        (TOKEN + " " + TOKEN, 0o600, "blanks"),
        (TOKEN + "ä", 0o600, "beyond ASCII"),
        ("x" * 5000, 0o600, "larger than"),
    ],
)
def test_a_token_that_is_no_secret_is_refused(content: str, mode: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content)
    (tmp_path / "token").chmod(mode)
    error = only_error(SMALLEST + 'admin: {bind: "127.0.0.1:8025", token_file: token}\n', tmp_path)
    assert error.key == "admin.token_file"
    assert words in error.message
    assert TOKEN not in str(error)


def test_a_token_in_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")
    error = only_error(SMALLEST + 'admin: {bind: "127.0.0.1:8025", token_file: token}\n', tmp_path)
    assert "not a regular file" in error.message


# Our own name.


def test_a_public_bind_wants_a_name_with_a_dot() -> None:
    text = with_listener('bind: "0.0.0.0:25", to: p, accept: anyone')
    assert settings_of(text).traffic.hostname == "lb1.example.net"
    error = only_error(text.replace("lb1.example.net", "lb1"))
    assert (error.key, error.line, "has no dot" in error.message) == ("hostname", 2, True)


def test_without_a_name_this_hosts_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    text = with_listener('bind: "0.0.0.0:25", to: p, accept: anyone').replace("hostname: lb1.example.net", "")
    monkeypatch.setattr(socket, "gethostname", lambda: "lb2")
    monkeypatch.setattr(socket, "getfqdn", lambda name: "lb2.example.net")
    assert settings_of(text).traffic.hostname == "lb2.example.net"
    monkeypatch.setattr(socket, "getfqdn", lambda name: "localhost.localdomain")
    error = only_error(text)
    assert (error.key, "just called `lb2`" in error.message) == ("hostname", True)
    monkeypatch.setattr(socket, "gethostname", lambda: "lb3.example.net")
    assert settings_of(text).traffic.hostname == "lb3.example.net"


def test_on_loopback_no_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> str:
        raise AssertionError("the DNS was asked")

    monkeypatch.setattr(socket, "getfqdn", fail)
    monkeypatch.setattr(socket, "gethostname", lambda: "not_a_name")
    assert settings_of(SMALLEST).traffic.hostname == "localhost"
