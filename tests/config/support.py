"""What the tests of the configuration share: texts to start from, and mistakes by key."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from textwrap import dedent

import trustme

from smtplb.config.errors import ConfigError, ConfigErrors
from smtplb.config.load import load_text
from smtplb.settings import (
    BackendSettings,
    GroupSettings,
    ListenerSettings,
    PoolSettings,
    RouteSettings,
    Settings,
)

SMALLEST = """\
listeners:
  - {bind: "127.0.0.1:2525", to: relays}
pools:
  relays:
    backends: ["127.0.0.1:2601", "127.0.0.1:2602"]
"""


def settings_of(text: str, base_dir: Path | None = None) -> Settings:
    return load_text(dedent(text), "lb.yaml", base_dir)


def errors_of(text: str, base_dir: Path | None = None) -> tuple[ConfigError, ...]:
    """The mistakes of a text, none if it has none."""
    try:
        settings_of(text, base_dir)
    except ConfigErrors as found:
        return found.errors
    return ()


def keys_of(text: str, base_dir: Path | None = None) -> list[str]:
    return [error.key for error in errors_of(text, base_dir)]


def only_error(text: str, base_dir: Path | None = None) -> ConfigError:
    errors = errors_of(text, base_dir)
    assert len(errors) == 1, "\n".join(map(str, errors))
    return errors[0]


def with_pool(pool: str, before: str = "") -> str:
    """A lawful file around the keys of pool `p`, written in flow style without the braces."""
    return f'{before}\nlisteners: [{{bind: "127.0.0.1:2525", to: p}}]\npools: {{p: {{{pool}}}}}\n'


def pool_of(pool: str, before: str = "") -> PoolSettings:
    return settings_of(with_pool(pool, before)).traffic.pools[0]


def backend_of(backend: str, pool: str = "", before: str = "") -> BackendSettings:
    return pool_of(f"{pool or 'policy: weighted'}, backends: [{backend}]", before).backends[0]


def with_group(group: str) -> str:
    """Pools east and west, and the keys of group `g`."""
    return f"""
listeners: [{{bind: "127.0.0.1:2525", to: g}}]
groups: {{g: {{{group}}}}}
pools: {{east: {{backends: ["e.test:25"]}}, west: {{backends: ["w.test:25"]}}}}
"""


def group_of(group: str) -> GroupSettings:
    return settings_of(with_group(group)).traffic.groups[0]


def with_listener(listener: str, before: str = "") -> str:
    """The keys of one listener before pool `p`, which may be sent passwords, on a host with a full name."""
    return f"""
hostname: lb1.example.net
{before}
listeners: [{{{listener}}}]
pools: {{p: {{backends: ["b.test:25"], tls: {{mode: required}}}}}}
"""


def listener_of(listener: str, before: str = "") -> ListenerSettings:
    return settings_of(with_listener(listener, before)).traffic.listeners[0]


def route_of(rules: str) -> RouteSettings:
    """Route `r` before pools p and q."""
    return settings_of(with_route(rules)).traffic.routes[0]


def with_route(rules: str, listener: str = 'bind: "127.0.0.1:2525", to: r', before: str = "") -> str:
    """The rules of route `r` in flow style without the brackets, and the keys of a listener before it. Pools p and q
    may be sent passwords."""
    return f"""
hostname: lb1.example.net
{before}
listeners: [{{{listener}}}]
routes: {{r: [{rules}]}}
x-tls: &tls {{mode: required}}
pools: {{p: {{backends: ["p.test:25"], tls: *tls}}, q: {{backends: ["q.test:25"], tls: *tls}}}}
"""


# TLS.


@cache
def authority() -> trustme.CA:
    return trustme.CA()


def write_certificate(folder: Path, certificate: str = "mx.pem", key: str = "mx.key") -> None:
    issued = authority().issue_cert("mx.example.org")
    issued.cert_chain_pems[0].write_to_path(folder / certificate)
    write_key(folder / key, issued.private_key_pem.bytes())


def write_key(path: Path, content: bytes, mode: int = 0o600) -> None:
    path.write_bytes(content)
    path.chmod(mode)


def write_files_named_in(text: str, folder: Path) -> None:
    """Certificates, keys and authorities that a configuration names."""
    for certificate, key in re.findall(r"certificate: ([\w.-]+), key: ([\w.-]+)", text):
        write_certificate(folder, certificate, key)
    for name in re.findall(r"ca: ([\w.-]+)", text):
        authority().cert_pem.write_to_path(folder / name)
