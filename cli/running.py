"""Commands that run things, and that show how they are."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from signal import Signals
from typing import Annotated, Any, NoReturn

import typer

from cli.environment import has_provider_url, has_together_key, is_debug, provider_name
from cli.options import AsCsv, AsJson, Data, Provider, Watch, Yes, find_data
from cli.output import print_json, print_line, print_note, print_table, show, watch_output
from cli.stopping import OnExit
from reasoning.errors import ReasoningError

app = typer.Typer()
flow_app = typer.Typer(help="The same verbs, observed by Prefect", no_args_is_help=True)


ProviderOption = Annotated[
    Provider,
    typer.Option(
        envvar="REASONING_PROVIDER",
        help="local: this machine; emulator: Together's API for tests; together costs money",
    ),
]


@app.command()
def serve(
    data: Data = None,
    provider: ProviderOption = Provider.LOCAL,
    host: Annotated[
        str,
        typer.Option(help="Address that the gateway and Prefect's server listen on; 0.0.0.0 in a container"),
    ] = "127.0.0.1",
    prefect_port: Annotated[int, typer.Option(min=0, max=65535, help="Of Prefect's server; 0: any free one")] = 4200,
    gateway_port: Annotated[int, typer.Option(min=0, max=65535, help="Of the gateway; 0: any free one")] = 8001,
    emulator_port: Annotated[int, typer.Option(min=0, max=65535, help="Of the emulator; 0: any")] = 8002,
    on_exit: Annotated[
        OnExit | None,
        typer.Option(
            help="What to do at the provider with what costs money when this ends",
            show_default="ask in a terminal, otherwise stop",
        ),
    ] = None,
) -> None:
    """Run everything: Prefect with every flow on its schedule, local models, the gateway. Ctrl-C stops it."""
    from cli.errors import ChildDied, ServeError
    from cli.serve import Service
    from cli.serve import serve as run
    from cli.stopping import in_terminal, say, settle_at_exit
    from provider.providers import provider_url
    from reasoning.config import load_config

    if provider is Provider.TOGETHER:
        provider_url("together")
        _require_key()

    def on_ready(services: list[Service]) -> None:
        _print_findings_at_start(folder, given=data)
        print_table(["", "", ""], [[each.name, each.url, each.what] for each in services], header=False)
        print_line(
            "Ctrl-C stops it all." if not costs else "Ctrl-C stops it all; what costs money at the provider, too."
        )

    folder = load_config(data).data
    # The emulator ends with `serve`, and its bill with it. What another provider runs goes on.
    costs = provider is Provider.TOGETHER or has_provider_url()
    try:
        signal_name = run(
            folder,
            provider=provider.value,
            host=host,
            prefect_port=prefect_port,
            gateway_port=gateway_port,
            emulator_port=emulator_port,
            on_step=lambda step: print_note(f"starting {step} ..."),
            on_ready=on_ready,
        )
    except BaseException as error:
        # Whatever ended it ended the guard, too. (Other `ServeError`s come before anything was started.)
        if costs and (isinstance(error, ChildDied) or not isinstance(error, ServeError)):
            settle_at_exit(folder.absolute(), provider.value, on_exit, may_ask=False)
        raise
    if not costs:
        say(f"{signal_name}: everything is stopped")
        return
    say(f"{signal_name}: the processes on this machine are stopped")
    may_ask = signal_name == "SIGINT" and in_terminal()
    if code := settle_at_exit(folder.absolute(), provider.value, on_exit, may_ask=may_ask):
        raise typer.Exit(code)


def _print_findings_at_start(folder: Path, *, given: Path | None) -> None:
    """What `reasoning doctor` would say, without what takes long or asks a server; to stderr."""
    from cli.doctor import look_at_gateway, print_findings
    from pipeline.diagnosis import look_at_machine, look_at_state

    with redirect_stdout(sys.stderr):
        print_findings(
            [
                *look_at_state(folder, given=given, quick=True),
                *look_at_machine(folder),
                *look_at_gateway(offline=True),
            ]
        )


def _require_key() -> None:
    from cli.errors import CommandError

    if not has_together_key():
        raise CommandError("TOGETHER_API_KEY is not set: the provider `together` needs it (`local` needs no key)")


@app.command()
def status(data: Data = None, watch: Watch = False, as_json: AsJson = False) -> None:
    """Show how things stand: folder, agents, data of what is needed, next cycle, lease, models, budgets, what runs."""
    folder = find_data(data)
    watch_output(watch, lambda: _print_status(folder, given=data, as_json=as_json))


def _print_status(folder: Path, *, given: Path | None, as_json: bool) -> None:
    from cli.doctor import print_findings
    from cli.serve import served
    from pipeline.diagnosis import look_at_state
    from pipeline.reports import budget_rows, text
    from provider.lifecycle.status import alerts, cost_report, model_status
    from reasoning.errors import RoutesError
    from reasoning.serving.routes import read_routes
    from storage.layout import Layout

    layout = Layout(folder)
    lease: dict[str, Any] = {"lease": "none"}
    try:
        routes = read_routes(layout.routes)
        lease = {
            "lease_until": routes.expires_at,
            "lease_in_force": routes.in_force(datetime.now(UTC)),
            "routed": sorted(routes.routes),
        }
    except FileNotFoundError:
        pass
    except RoutesError as error:
        lease = {"lease": f"unreadable: {error}"}
    found = {
        "data": folder,
        "served": served(folder),
        "segments_to_land": len(list(layout.spool.glob("*.seal"))),
        "segments_being_written": len(list(layout.spool.glob("*.open"))),
        "quarantined_files": len(list(layout.quarantine.glob("*.jsonl"))),
        **lease,
    }
    models, budgets = model_status(folder), cost_report(folder)["budgets"]
    warned, findings = alerts(folder), look_at_state(folder, given=given)
    if as_json:
        print_json({**found, "alerts": warned, "models": models, "budgets": budgets, "findings": findings})
        return
    print_findings([each for each in findings if each.name != "money"])  # alerts come last, as ever
    print_line("")
    served_here = {name: str(value) for name, value in found["served"].items()}  # a process id is no quantity
    show(found | {"served": served_here}, as_json=False, title="Status")
    columns = ("model_id", "decision_type", "state", "enabled", "deployment_state", "hourly_usd", "cost_usd")
    show([{key: row[key] for key in columns} for row in models], as_json=False, title="Models")
    for row in models:
        if row["why"]:
            print_line(f"{row['model_id']} is {row['state']} since {text(row['changed_at'])}: {row['why']}")
        if row["live_test"]:
            print_line(f"{row['model_id']}, live test: {row['live_test']['action']}. {row['live_test']['reason']}")
    show(budget_rows(budgets), as_json=False, title="Budgets")
    for line in warned:
        print_line(f"ALERT: {line}")


@app.command()
def config(data: Data = None, as_json: AsJson = False) -> None:
    """Show the settings in effect here, without secrets."""
    from pipeline.reports import without
    from provider.providers import provider_url
    from reasoning.config import load_config
    from storage.ledger.database import ledger_url, shown_url

    find_data(data, may_be_new=True)
    settings = load_config(data)
    try:
        provider = provider_url()
    except ReasoningError as error:
        provider = f"none: {error}"
    found = {
        **without(settings, "api_key", "keys", "decision_types"),
        "api_key": "set" if settings.api_key else "not set",
        "keys": {
            bound.variable: f"{', '.join(bound.urls)} ({'set' if bound.key else 'not set'})" for bound in settings.keys
        },
        "provider": provider_name() or "local",
        "provider_url": provider,
        "ledger": shown_url(ledger_url(settings.data)),
        "decision_types": {name: f"{kind.tier}, {kind.answer}" for name, kind in settings.decision_types.items()},
    }
    show(found, as_json=as_json, title="Settings")


@flow_app.command("list")
def list_flows(as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """List the flows."""
    from tasks.entrypoints import entrypoints

    rows = [{"flow": name, "entrypoint": value} for name, value in entrypoints().items()]
    show(rows, as_json=as_json, as_csv=as_csv, title="Flows")


@flow_app.command("run")
def run_flow(
    name: Annotated[str, typer.Argument(help="Such as land_decisions or fine-tune")],
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="name=value; values are JSON or text")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Run a flow now, observed by Prefect: the server of `reasoning serve` if it is up, otherwise a temporary one."""
    from tasks.entrypoints import load_flow
    from tasks.entrypoints import run_flow as run

    folder = find_data(data)  # before Prefect is imported, which reads its settings then
    parameters = {"data": folder, **dict(_parse_parameter(each) for each in param or ())}
    flow = load_flow(name)
    from prefect.exceptions import ParameterTypeError, SignatureMismatchError

    logging.getLogger("prefect.flows").disabled = True  # it says the same, at length
    try:
        flow.validate_parameters(parameters)
    except (ParameterTypeError, SignatureMismatchError) as error:
        known = ", ".join(flow.parameters.properties)
        raise typer.BadParameter(f"{error}. {name} takes {known}") from error
    finally:
        logging.getLogger("prefect.flows").disabled = False
    show(run(name, **parameters), as_json=as_json, title=name)


def _parse_parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is not name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


@app.command()
def demo(
    data: Annotated[Path, typer.Option(help="The demo's folder; results of an earlier demo in it are deleted")] = Path(
        "demo-data"
    ),
    # Not from the environment, unlike elsewhere: nobody spends money by trying the demo.
    provider: Annotated[
        Provider, typer.Option(help="local, emulator: free; together costs real money and asks first")
    ] = Provider.LOCAL,
    conversations: Annotated[
        Path | None,
        typer.Option(
            help="Other conversations, in the format of chitchat-dataset's dataset.json", dir_okay=False, exists=True
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="US dollars in all",
            show_default="none; 110 for emulator; for together, training and one hour",
        ),
    ] = None,
    yes: Yes = False,
) -> None:
    """Run a full cycle on real conversations, on this machine, without an API key."""
    from decimal import Decimal

    from cli.demo import Interrupted, run
    from cli.errors import describe
    from provider.providers import provider_url

    if provider is Provider.TOGETHER:
        provider_url("together")
        _require_key()
    try:
        run(
            data,
            provider=provider.value,
            conversations=conversations,
            budget_usd=None if budget is None else Decimal(str(budget)),
            confirm=lambda question: yes or typer.confirm(question),
        )
    except Interrupted as interruption:
        _end(
            f"{Signals(interruption.number).name}: the demo and its servers are stopped. The data in {data} is whole; "
            "`reasoning demo` begins anew",
            128 + interruption.number,
        )
    except (ReasoningError, OSError) as error:
        if is_debug():
            traceback.print_exc(file=sys.__stderr__)
        _end(f"error: {describe(error)}", 1)
    except Exception:
        _end(traceback.format_exc(), 1)


def _end(why: str, code: int) -> NoReturn:
    """End without waiting for the demo's threads (`cli.demo.run`)."""
    sys.stdout.flush()
    print(why, file=sys.__stderr__, flush=True)
    os._exit(code)
