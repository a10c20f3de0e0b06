"""The command `reasoning`. Imports little: what a command needs, it imports when it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli import costs, decisions, doctor, imports, init, label, log, mcp, models, running, types
from cli.environment import is_debug, load_env_file, set_debug
from cli.errors import describe
from cli.examples import add_examples
from reasoning.errors import ReasoningError

app = typer.Typer(
    name="reasoning",
    help="A flywheel for agents' decisions: log them, train small models on them, prove the models, serve them.",
    no_args_is_help=True,
    epilog="Exit codes: 0 done; 1 an error, or something wrong was found; 2 wrong usage; 130 Ctrl-C.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for each in (
    init.app,
    running.app,
    doctor.app,
    log.app,
    imports.app,
    decisions.app,
    label.app,
    models.app,
    costs.app,
    mcp.app,
):
    app.add_typer(each)  # without a name: its commands are the root's
app.add_typer(running.flow_app, name="flow")
app.add_typer(decisions.data_app, name="data")
app.add_typer(types.types_app, name="types")
app.add_typer(models.models_app, name="models")
app.add_typer(costs.costs_app, name="costs")
add_examples(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"reasoning {version('custom-reasoning')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where in the code an error comes from")] = False,
) -> None:
    if debug:
        set_debug()


def main() -> None:
    """Run a command. An error of ours or of the system is one line on stderr and exit code 1; wrong usage is 2."""
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            print(f"error: the argument {os.fsencode(argument)!r} is not UTF-8", file=sys.stderr)
            sys.exit(2)
    load_env_file()
    os.umask(0o077)  # what we and our child processes make is for its owner alone
    try:
        app()
    except (ReasoningError, OSError) as error:
        if is_debug():
            raise
        if isinstance(error, BrokenPipeError):  # `reasoning sql … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        print(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
