"""The `smtplb` command: what it lists is there, and it is quick to say so."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import click
import pytest
from click.testing import CliRunner

from smtplb.cli.main import COMMANDS, cli

HEAVY = {
    "uvloop",
    "aiohttp",
    "pydantic",
    "rich",
    "yaml",
    "prometheus_client",
    "aiosmtpd",
    "asyncio",
    "orjson",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_its_own(name: str) -> None:
    module, text = COMMANDS[name]
    command = getattr(import_module(module), name)
    assert isinstance(command, click.Command)
    assert command.get_short_help_str(limit=200) == text


def test_every_command_is_listed() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    listed = [
        line.split()[0] for line in result.output.partition("Commands:")[2].splitlines() if line.strip()
    ]
    assert [name for name in listed if name in COMMANDS] == list(COMMANDS)


def test_help_and_version_import_no_library_of_a_command() -> None:
    script = (
        "import sys\n"
        "from smtplb.cli.main import cli\n"
        "for arguments in (['--help'], ['--version']):\n"
        "    cli(arguments, standalone_mode=False)\n"
        "print('loaded', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout.partition("loaded")[2].split()
    assert not HEAVY & set(loaded)


def test_the_version_is_told() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("smtplb ")


def test_an_unknown_command_is_a_wrong_usage() -> None:
    result = CliRunner().invoke(cli, ["fly"])
    assert result.exit_code == 2
    assert "No such command" in result.output
