"""Commands on money."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from enum import StrEnum
from typing import Annotated

import typer

from cli.options import AsCsv, AsJson, Data, DryRun, Provider, Watch, check_decision_type, find_data, with_settings
from cli.output import print_json, print_line, show, watch_output
from pipeline.parameters import GuardSettings, PaysSettings
from pipeline.reports import to_jsonable, without

app = typer.Typer()
costs_app = typer.Typer(help="What was spent, and what may be", no_args_is_help=True)


class Period(StrEnum):
    """`hour` limits what everything that runs may cost an hour; the others are calendar periods in UTC."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


@app.command()
def stop(
    data: Data = None,
    dry_run: DryRun = False,
    provider: Annotated[
        Provider | None,
        typer.Option(help="The provider to stop at", show_default="REASONING_PROVIDER, else the one served last"),
    ] = None,
    installation: Annotated[
        list[str] | None, typer.Option(help="Another id in the names rsn-ID-..., if the data folder has lost it")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Stop everything of this installation that costs money: deployments and fine-tunes.

    Works from the provider's lists, even without a ledger. Exit code 1: something still runs, or its state is unknown.
    """
    from cli.stopping import chosen_provider, describe_running, folder_to_stop, report_lines, stop_command, stop_running

    folder = folder_to_stop(data)
    at = chosen_provider(provider, folder)
    report = stop_running(folder, at, dry_run=dry_run, installations=list(installation or ()))
    if as_json:
        print_json({"dry_run": dry_run, "provider": at, "is_clear": report.is_clear, **to_jsonable(report)})
    else:
        left = {each.remote_id for each in report.remaining}
        for each in report.found:
            if each.remote_id not in left:
                print_line(f"stopped: {describe_running(each)}")
        for line in report_lines(report, stop_command(folder, at)):
            print_line(line)
        if report.is_clear:
            more = " any more" if report.found else ""
            print_line(f"Nothing of this installation runs at the provider `{at}`{more}.")
        if at != Provider.TOGETHER and provider is None:
            print_line(
                f"Only the provider `{at}` was asked; what costs real money: `reasoning stop --provider together`"
            )
    if not report.is_clear and not (dry_run and not report.errors):
        raise typer.Exit(1)


@app.command("pays")
@with_settings
def pays_command(
    decision_type: Annotated[str | None, typer.Argument(help="Only this decision type")] = None,
    data: Data = None,
    *,
    settings: PaysSettings,
    as_json: AsJson = False,
) -> None:
    """Say whether a model pays: what a decision type costs now, and what each way of serving would. Spends nothing."""
    from pipeline.economy.pays import pays, save_pays
    from pipeline.economy.tables import pays_rows, way_rows

    folder = find_data(data)
    name = check_decision_type(decision_type, folder) if decision_type else None
    found = pays(folder, name, settings=settings)
    if name is None:
        save_pays(folder, found)
    if as_json:
        print_json(found)
        return
    if not found:
        print_line("The log has no decisions in that time: land some first (`reasoning land`).")
    if len(found) > 1:
        show(pays_rows(found), as_json=False, title="Does a model pay?")
    for each in found:
        rows = [without(row, "note", "price_from") for row in way_rows(each)]
        show(rows, as_json=False, title=f"{each.decision_type}: {each.decisions_a_day:,.0f} decisions a day")
        print_line(f"{each.verdict.upper()}. {each.why}\n")


@app.command()
@with_settings
def guard(
    data: Data = None,
    *,
    settings: GuardSettings,
    as_json: AsJson = False,
) -> None:
    """Run the guard once: charge usage, enforce budgets, stop idle deployments, renew the lease if all is well."""
    from pipeline.money import guard as guard_costs

    report = guard_costs(find_data(data), **asdict(settings))
    show(report, as_json=as_json, title="The guard")
    if report.errors:
        raise typer.Exit(1)


@app.command()
def reconcile(data: Data = None, as_json: AsJson = False) -> None:
    """Compare the provider with the ledger: stop orphans, charge them, compare the bill."""
    from pipeline.money import reconcile as reconcile_provider

    report = reconcile_provider(find_data(data))
    show(report, as_json=as_json, title="Provider compared with ledger; amounts of hours with a complete bill")
    if report.errors:
        raise typer.Exit(1)


@costs_app.command("now")
def now_command(
    data: Data = None,
    watch: Watch = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Show what each decision type costs today and this month, and what that saves against the fallback."""
    from pipeline.economy.overview import costs_now

    folder, title = find_data(data), "US dollars today and this month (UTC), by decision type"
    watch_output(watch, lambda: show(costs_now(folder), as_json=as_json, as_csv=as_csv, title=title))


@costs_app.command("report")
def report(
    data: Data = None,
    period: Annotated[Period, typer.Option(help="The current calendar period (UTC)")] = Period.MONTH,
    as_json: AsJson = False,
) -> None:
    """Show spending by kind and by model, against the budgets, with a forecast."""
    from pipeline.reports import budget_rows, cost_fields, cost_rows
    from provider.lifecycle.status import cost_report

    found = cost_report(find_data(data), period=period.value)
    if as_json:
        print_json(found)
        return
    show(cost_fields(found), as_json=False, title="Costs")
    show(cost_rows(found["models"]), as_json=False, title="By model")
    show(budget_rows(found["budgets"]), as_json=False, title="Budgets")


@costs_app.command("charges")
def charges(
    data: Data = None,
    limit: Annotated[int, typer.Option(min=1, help="Show only this many of the latest")] = 20,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List charges and their reasons, the latest last. Negative amounts are corrections to the bill."""
    from storage.ledger.ledger import open_ledger

    with open_ledger(find_data(data)) as ledger:
        rows = [asdict(row) for row in ledger.charges()[-limit:]]
    columns = ("ts", "kind", "amount_usd", "what", "decision_type")
    shown = rows if as_json or as_csv else [{name: row[name] for name in columns} for row in rows]
    show(shown, as_json=as_json, as_csv=as_csv, title="Charges")


@costs_app.command("set-budget")
def set_budget(
    limit_usd: Annotated[str, typer.Argument(help="US dollars, such as 25 or 0.50; `none` removes the limit")],
    period: Annotated[Period, typer.Option(help="What it is for")] = Period.DAY,
    decision_type: Annotated[str | None, typer.Option(help="Only for this decision type")] = None,
    data: Data = None,
) -> None:
    """Set a spending limit, and say what it buys and which budgets contradict it."""
    from pipeline.economy.budgets import describe_purchase, inconsistencies, machine_of
    from prices.settings import load_prices
    from storage.ledger.ledger import open_ledger
    from storage.ledger.money import format_usd

    folder = find_data(data)
    limit = None if limit_usd.lower() == "none" else limit_usd.removeprefix("$")
    name = check_decision_type(decision_type, folder) if decision_type else None
    with open_ledger(folder) as ledger:
        try:
            ledger.set_budget(period.value, limit, name)
        except ValueError as error:
            raise typer.BadParameter(f"{error}; give dollars, such as 25 or 0.50, or `none`") from error
        machine = machine_of(ledger, load_prices().serving)
        contradictions = inconsistencies(ledger.budgets(), machine)
    what = f"{period.value} budget" + (f" of {name}" if name else "")
    print_line(f"{what}: " + ("no limit" if limit is None else format_usd(Decimal(limit))))
    if limit is not None:
        print_line(f"buys {describe_purchase(period.value, Decimal(limit), machine)}")
    for line in contradictions:
        print_line(f"note: {line}")
