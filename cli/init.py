"""`reasoning init`: asks for what no option gives, writes the files, and prints what to paste."""

from __future__ import annotations

import sys
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.environment import provider_name, set_variable, variable
from cli.errors import CommandError
from cli.options import Provider, Yes
from cli.output import print_line
from pipeline.errors import SetupError
from reasoning.errors import ReasoningError

if TYPE_CHECKING:
    from pipeline.setup import OwnType, Setup
    from reasoning.config import Config

app = typer.Typer()

_BUDGETS = {"day": "25", "month": "100"}


@app.command()
def init(
    data: Annotated[
        Path | None, typer.Option("--data", help="The data folder, one for agents and `serve`; made absolute")
    ] = None,
    own_type: Annotated[
        list[str] | None,
        typer.Option("--type", help="A decision type of your own: NAME=LABEL,LABEL or NAME=LABEL,LABEL:QUESTION"),
    ] = None,
    provider: Annotated[
        Provider | None, typer.Option(help="local trains and serves here for nothing; together costs money")
    ] = None,
    budget_day: Annotated[str | None, typer.Option(help="US dollars a day; `none` removes the limit")] = None,
    budget_month: Annotated[str | None, typer.Option(help="US dollars a month; `none` removes the limit")] = None,
    retention_days: Annotated[
        int | None, typer.Option(min=0, help="Keep decisions so many days; 0: for ever", show_default="as it is")
    ] = None,
    idle_minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Stop a model nobody asked for so long; 0: never", show_default="as it is: 15"),
    ] = None,
    client_credentials: Annotated[
        bool | None,
        typer.Option(
            "--client-credentials/--gateway-credentials",
            help="Clients of the gateway bring their own key or login, or the gateway has the keys",
            show_default="as it is",
        ),
    ] = None,
    yes: Yes = False,
) -> None:
    """Set up a project: ask, explain, write reasoning.toml and .env (0600), and print what to paste where.

    May be run again: it changes what is answered and keeps the rest. With --yes nothing is asked; keys are taken from
    the environment and not written.
    """
    from cli.snippets import snippets
    from pipeline.setup import Setup, write_setup
    from reasoning.config import load_config, settings_file

    settings = settings_file().absolute()
    env_file = settings.parent / ".env"
    try:
        known = load_config() if settings.exists() else None
    except ReasoningError as error:
        raise CommandError(f"{error}; mend it, or move {settings} away, and run `reasoning init` again") from error
    setup = Setup(
        data=_absolute(data) if data else (known.data if known else Path.home() / "reasoning-data"),
        provider=provider.value if provider else (provider_name() or "local"),
        types=tuple(map(_read_type, own_type or ())),
        retention_days=retention_days,
        idle_minutes=idle_minutes,
        client_credentials=client_credentials,
        budgets={
            period: _usd(text, f"--budget-{period}")
            for period, text in (("day", budget_day), ("month", budget_month))
            if text is not None
        },
    )
    if not yes:
        if not _in_terminal():
            raise CommandError(
                "init asks questions, and nobody can answer here; give --yes, and options for the answers"
            )
        given = {"data": data, "provider": provider, "types": own_type, "budgets": budget_day or budget_month}
        setup = _ask_all(setup, known, given)
    elif setup.provider == Provider.TOGETHER:
        _check_together(setup.data)
    for path in write_setup(setup, settings, env_file):
        print_line(f"wrote {path}")
    _tell_budgets(setup)
    for title, lines in snippets(setup.data, settings, env_file):
        print_line(f"\n# {title}\n{lines}")
    print_line("\nNext: `reasoning serve` here, then `reasoning doctor`. The first decision: `reasoning log -f`.")


def _in_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _read_type(text: str) -> OwnType:
    """`tone=friendly,formal` or `tone=friendly,formal:Which tone fits?`. Raises BadParameter."""
    from pipeline.setup import OwnType

    name, equals, rest = text.partition("=")
    labels, _, question = rest.partition(":")
    listed = tuple(label.strip() for label in labels.split(",") if label.strip())
    if not name.strip() or not equals or len(listed) < 2:
        raise typer.BadParameter(f"{text!r} is no type; write NAME=LABEL,LABEL", param_hint="--type")
    return OwnType(name=name.strip().replace("-", "_"), labels=listed, question=question.strip() or None)


def _usd(text: str, flag: str) -> Decimal | None:
    if text.strip().lower() == "none":
        return None
    try:
        value = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation:
        value = Decimal(-1)
    if not value.is_finite() or value < 0:
        raise typer.BadParameter(f"{text!r} is no amount; give US dollars, such as 25, or `none`", param_hint=flag)
    return value


def _ask_all(setup: Setup, known: Config | None, given: dict[str, Any]) -> Setup:
    """The setup with the answers to all questions that no option has answered. Ctrl-C ends it; nothing is written."""
    if not given["data"]:
        print_line("Decisions, datasets and the ledger live in one folder, for agents and `serve` alike.")
        setup = replace(setup, data=_absolute(Path(_ask("text", "Data folder:", default=str(setup.data)))))
    if not given["types"]:
        setup = replace(setup, types=_ask_types(known))
    if not given["provider"]:
        setup = replace(setup, provider=_ask_provider(setup.provider))
    if setup.provider == Provider.TOGETHER:
        setup = _ask_together(setup)
    if setup.provider == Provider.TOGETHER and not given["budgets"]:
        setup = replace(setup, budgets=_ask_budgets(setup))
    if setup.retention_days is None:
        kept = known.retention.decisions if known else None
        text = _ask("text", "Keep decisions how many days? 0: for ever", default=str(kept or 0), validate=_is_number)
        setup = replace(setup, retention_days=int(text))
    if setup.idle_minutes is None:
        text = _ask("text", "Stop a model that nobody asked for how many minutes? 0: never", "15", validate=_is_number)
        setup = replace(setup, idle_minutes=float(text))
    if setup.client_credentials is None:
        print_line("Coding tools may go through the gateway: with your API keys in it, or with their own key or login.")
        question = "Do clients bring their own (a Claude subscription, for example)?"
        setup = replace(setup, client_credentials=bool(_ask("confirm", question, default=False)))
        if not setup.client_credentials:
            setup = _ask_keys(setup)
    return setup


def _ask(kind: str, question: str, default: Any = "", **options: Any) -> Any:
    """One question of questionary. Raises KeyboardInterrupt."""
    import questionary

    if kind != "password":
        options["default"] = default
    return getattr(questionary, kind)(question, **options).unsafe_ask()


def _is_number(text: str) -> bool | str:
    return text.isdigit() or "a whole number is needed"


def _ask_types(known: Config | None) -> tuple[OwnType, ...]:
    names = ", ".join(known.decision_types if known else ("should_respond", "planning", "coding"))
    print_line(f"Decision types that are there: {names}. Typed questions (`client.ask`) need none.")
    found: list[OwnType] = []
    while _ask("confirm", "Add a type of your own?" if not found else "Another one?", default=False):
        text = _ask("text", "NAME=LABEL,LABEL (and :QUESTION), such as tone=friendly,formal:Which tone fits?")
        try:
            found.append(_read_type(text))
        except typer.BadParameter as error:
            print_line(str(error))
    return tuple(found)


def _ask_provider(now: str) -> str:
    import questionary

    choices = [
        questionary.Choice("this machine: small models, for nothing", "local"),
        questionary.Choice("Together: larger models; a fine-tune from $4, a replica by the minute", "together"),
    ]
    default = now if now in ("local", "together") else "local"
    return str(_ask("select", "Where are models trained and served?", default=default, choices=choices))


def _ask_together(setup: Setup) -> Setup:
    """Ask for the key until the provider takes it, and show its prices."""
    variables = dict(setup.variables)
    while True:
        if variable("TOGETHER_API_KEY") is None:
            key = str(_ask("password", "Together API key (it is written to .env, 0600):")).strip()
            if not key:
                raise SetupError("no key was given; run `reasoning init` again, or choose this machine")
            set_variable("TOGETHER_API_KEY", key)
            variables["TOGETHER_API_KEY"] = key
        try:
            _check_together(setup.data)
        except ReasoningError as error:
            print_line(str(error))
            if not variables.pop("TOGETHER_API_KEY", None) or not _ask("confirm", "Try another key?", default=True):
                raise
            set_variable("TOGETHER_API_KEY", "")
        else:
            return replace(setup, variables=variables)


def _check_together(data: Path) -> None:
    """Have the provider take the key, and tell the project and the prices. Raises `ProviderError`."""
    from provider.providers import open_provider
    from storage.ledger.money import format_usd

    with open_provider(data, "together", timeout=15) as provider:
        base = provider.base_model("small")
        least = provider.capabilities.minimum_training_usd
        print_line(f"Together takes the key; {len(provider.endpoints())} endpoints are there")
        print_line(f"{base.name}: a fine-tune from {format_usd(least)}, {format_usd(base.hourly_usd)} an hour to serve")


def _ask_budgets(setup: Setup) -> dict[str, Decimal | None]:
    found: dict[str, Decimal | None] = {}
    for period, default in _BUDGETS.items():
        text = _ask("text", f"Most US dollars a {period} ({_purchase(setup.data, period, Decimal(default))}):", default)
        found[period] = _usd(str(text), f"--budget-{period}")
    return found


def _purchase(data: Path, period: str, limit: Decimal) -> str:
    from pipeline.economy.budgets import describe_purchase, machine_of
    from prices.settings import load_prices
    from storage.ledger.ledger import open_ledger

    if not data.exists():
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            return _purchase(Path(folder), period, limit)
    with open_ledger(data) as ledger:
        bought = describe_purchase(period, limit, machine_of(ledger, load_prices().serving))  # type: ignore[arg-type]
    return f"{limit} buys {bought.removeprefix('buys ')}"


def _tell_budgets(setup: Setup) -> None:
    from pipeline.economy.budgets import inconsistencies, machine_of
    from prices.settings import load_prices
    from storage.ledger.ledger import open_ledger

    for period, limit in setup.budgets.items():
        print_line(f"{period} budget: " + ("no limit" if limit is None else _purchase(setup.data, period, limit)))
    with open_ledger(setup.data) as ledger:
        for line in inconsistencies(ledger.budgets(), machine_of(ledger, load_prices().serving)):
            if setup.budgets:
                print_line(f"note: {line}")


def _ask_keys(setup: Setup) -> Setup:
    variables = dict(setup.variables)
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        if variable(name) is None:
            key = str(_ask("password", f"{name} for the gateway (empty: none; it is written to .env, 0600):")).strip()
            if key:
                variables[name] = key
    return replace(setup, variables=variables)
