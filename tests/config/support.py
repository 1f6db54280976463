"""What the tests of the configuration share: texts to start from, and mistakes by key."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from smtplb.config.errors import ConfigError, ConfigErrors
from smtplb.config.load import load_text
from smtplb.settings import BackendSettings, GroupSettings, ListenerSettings, PoolSettings, Settings

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
    """The keys of one listener before pool `p`, on a host with a full name."""
    return f"""
hostname: lb1.example.net
{before}
listeners: [{{{listener}}}]
pools: {{p: {{backends: ["b.test:25"]}}}}
"""


def listener_of(listener: str, before: str = "") -> ListenerSettings:
    return settings_of(with_listener(listener, before)).traffic.listeners[0]
