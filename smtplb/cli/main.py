"""The `smtplb` command: which commands there are.

Owns their names, their one-line help and where each is defined. Does not own what any of them does.
Invariant: nothing of a command is imported before that command is asked for: `smtplb --help` stays quick, and
`smtplb sink` works where the configuration's libraries are broken.
"""

from __future__ import annotations

from importlib import import_module, metadata

import click

# name -> (module, help). tests/cli/test_main.py holds the help against the commands' own.
COMMANDS = {
    "run": ("smtplb.cli.run", "Run the balancer with the configuration in FILE."),
    "validate": ("smtplb.cli.validate", "Check FILE and say what it does."),
    "status": ("smtplb.cli.operate", "Show the balancer's condition, worst problem first."),
    "drain": ("smtplb.cli.operate", "Give TARGET no new transactions."),
    "maint": ("smtplb.cli.operate", "Take TARGET out altogether."),
    "resume": ("smtplb.cli.operate", "Let TARGET take transactions again."),
    "reload": ("smtplb.cli.operate", "Have the balancer read its configuration again."),
    "demo": ("smtplb.cli.demo", "Show the main job: a backend dies under load, and no mail is lost."),
    "sink": ("smtplb.cli.sink", "Be a backend that throws all mail away, with faults on request."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports them when they are wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command = getattr(import_module(module), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from smtplb.smtp.scan import COMPILED

    try:
        version = metadata.version("smtplb")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    click.echo(f"smtplb {version}, {'compiled' if COMPILED else 'pure Python'}")
    context.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """SMTP-aware load balancing front proxy: picks a backend for each message, takes responsibility for none.

    Exit status: 0 fine, 1 failed, 2 wrong usage, 3 the balancer cannot be reached.
    """


def main() -> None:
    cli(prog_name="smtplb")


if __name__ == "__main__":
    main()
