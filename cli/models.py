"""Commands on datasets and models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import (
    AsCsv,
    AsJson,
    Data,
    DecisionType,
    ModelName,
    Watch,
    check_decision_type,
    find_data,
    with_settings,
)
from cli.output import print_json, print_line, print_note, progress_bar, show, watch_output, without_controls
from pipeline import parameters
from pipeline.parameters import (
    CycleSettings,
    DemoteSettings,
    DeploySettings,
    EvaluateSettings,
    FineTuneSettings,
    PromoteSettings,
    RegisterSettings,
    RollbackSettings,
    UndeploySettings,
)
from pipeline.reports import without
from quality.settings import ExperimentSettings, ExportSettings

if TYPE_CHECKING:
    from pipeline.cycle_plan import CyclePlan
    from reasoning.serving.routes import Route

app = typer.Typer()
models_app = typer.Typer(help="The models there are", no_args_is_help=True)


@contextmanager
def interruptible(data: Path) -> Iterator[None]:
    """After Ctrl-C say what goes on at the provider, what it costs, and the command that ends it. Exits with 130."""
    try:
        yield
    except KeyboardInterrupt:
        from provider.lifecycle.status import running

        lines = [f"{each['what']}: `{each['mend']}`" for each in running(data)]
        print_note(
            "interrupted. " + ("\n".join(["Still running at the provider:", *lines]) if lines else "Nothing runs")
        )
        raise typer.Exit(130) from None


@app.command()
@with_settings
def export(
    decision_type: DecisionType, data: Data = None, *, settings: ExportSettings, as_json: AsJson = False
) -> None:
    """Export a dataset from the decision log: selected, labelled, redacted, deduplicated, split by time."""
    from pipeline.models import export as export_dataset
    from quality.evaluation.promotion import promotion_warnings
    from quality.period import first_moment, moment_after
    from reasoning.config import load_config

    folder = find_data(data)
    name = check_decision_type(decision_type, folder)
    start, end = first_moment(settings.since), moment_after(settings.until)
    if start and end and start >= end:
        raise typer.BadParameter(f"--since {settings.since} is after --until {settings.until}")
    with progress_bar(f"exporting {name}") as progress:
        manifest = export_dataset(folder, name, settings, progress=progress)
    show(manifest if as_json else without(manifest, "query", "quality"), as_json=as_json, title="Exported")
    for warning in promotion_warnings(manifest.path, load_config(folder)):
        print_note(warning)


@app.command("fine-tune")
@with_settings
def fine_tune(
    dataset: Annotated[str, typer.Argument(help=parameters.DATASET_HELP + " `reasoning data datasets` lists them.")],
    data: Data = None,
    *,
    settings: FineTuneSettings,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on a dataset, within the budget, and wait for it."""
    from pipeline.models import fine_tune as train

    folder, begun = find_data(data), datetime.now(UTC)
    with progress_bar("fine-tuning") as progress, interruptible(folder):
        job = train(
            folder,
            dataset,
            tier=settings.tier,
            parameters={"n_epochs": settings.n_epochs},
            again=settings.again,
            anyway=settings.anyway,
            progress=progress,
        )
    if job.updated_at < begun:
        print_note("The same was trained before; nothing was spent. --again trains it once more")
    show(asdict(job), as_json=as_json, title=f"Model {job.model_id}")


@app.command()
@with_settings
def deploy(
    model: ModelName,
    data: Data = None,
    *,
    settings: DeploySettings,
    as_json: AsJson = False,
) -> None:
    """Deploy a model on its own endpoint, without traffic yet. From then on it costs by the minute."""
    from pipeline.models import deploy as deploy_model

    folder = find_data(data)
    with progress_bar("deploying") as progress, interruptible(folder):
        row = deploy_model(folder, model, replicas=settings.replicas, progress=progress)
    show(asdict(row), as_json=as_json, title="Deployed")


@app.command()
@with_settings
def evaluate(
    model: ModelName,
    data: Data = None,
    *,
    settings: EvaluateSettings,
    as_json: AsJson = False,
) -> None:
    """Evaluate a deployed model against the fallback and the incumbent on the holdout."""
    from pipeline.evaluation import evaluate_model
    from pipeline.reports import evaluation_rows

    folder = find_data(data)
    with progress_bar("evaluating") as progress:
        found = evaluate_model(folder, model, settings, progress=progress)
    if as_json:
        print_json(found)
        return
    show(evaluation_rows(found), as_json=False, title=f"{found.rows:,} rows of {found.episodes:,} episodes")
    for note in found.notes:
        print_line(note)
    print_line(found.about["card"]["worst_slice"])
    print_line(f"Verdict: {found.about['verdict']['decision']}. {found.about['verdict']['why']}")
    print_line(f"The model card: reasoning models card {found.about['model_id']}")


@app.command()
@with_settings
def experiment(
    decision_type: DecisionType, data: Data = None, *, settings: ExperimentSettings, as_json: AsJson = False
) -> None:
    """Show the live test of the model that has traffic: its difference to what it replaces, and what to do."""
    from pipeline.experiment import experiment_rows, report_experiment
    from pipeline.reports import evaluation_rows

    folder = find_data(data)
    report = report_experiment(folder, check_decision_type(decision_type, folder), settings)
    if as_json:
        print_json(report)
        return
    title = f"Model {report.model_id} ({report.stage}) less {report.against}, by episode"
    show(experiment_rows(report), as_json=False, title=title)
    show(report.decision.numbers, as_json=False, title="Figures")
    if report.evaluation is not None:
        show(evaluation_rows(report.evaluation), as_json=False, title=f"All {report.evaluation.rows:,} labelled rows")
    else:
        print_line(f"No table of metrics: {report.nothing_to_compare}")
    print_line(f"Decision: {report.decision.action}. {report.decision.reason}")


@app.command()
@with_settings
def promote(
    model: ModelName,
    data: Data = None,
    *,
    settings: PromoteSettings,
    shadow: Annotated[bool, typer.Option("--shadow", hidden=True, help="The older form of --mode shadow")] = False,
    as_json: AsJson = False,
) -> None:
    """Give a deployed model traffic, if its evaluation approves it."""
    from pipeline.evaluation import choose_confidence
    from pipeline.promotion import promote_model

    if shadow:
        print_note("--shadow is deprecated: use --mode shadow")
        settings = replace(settings, mode="shadow")
    folder = find_data(data)
    if settings.min_confidence == "auto":
        threshold = choose_confidence(folder, model)
        print_note(threshold.describe())
        settings = replace(settings, min_confidence=threshold.chosen.min_confidence)
    route = promote_model(folder, model, settings)
    show(route if as_json else list(route.arms), as_json=as_json, title=f"Arms of {route.experiment}")


@app.command()
@with_settings
def demote(
    model: ModelName,
    data: Data = None,
    *,
    settings: DemoteSettings,
    as_json: AsJson = False,
) -> None:
    """Take traffic from a model: leave it the canary's share, let it answer in the background, or reject it."""
    from pipeline.demotion import demote_model

    found = demote_model(find_data(data), model, settings)
    show(found if as_json else without(found, "route"), as_json=as_json, title="Demoted")
    _show_arms(found.route, as_json=as_json)


@app.command()
@with_settings
def rollback(
    decision_type: DecisionType,
    data: Data = None,
    *,
    settings: RollbackSettings,
    as_json: AsJson = False,
) -> None:
    """Undo the last step up of a decision type: withdraw what serves, and bring back the model before."""
    from pipeline.demotion import roll_back

    folder = find_data(data)
    name = check_decision_type(decision_type, folder)
    with progress_bar("rolling back") as progress, interruptible(folder):
        found = roll_back(folder, name, settings, progress=progress)
    show(found if as_json else without(found, "route"), as_json=as_json, title="Rolled back")
    _show_arms(found.route, as_json=as_json)


def _show_arms(route: Route | None, *, as_json: bool) -> None:
    """Print who answers from now on, for people."""
    if as_json:
        return
    if route is None:
        print_line("The fallback answers all questions.")
    else:
        show(list(route.arms), as_json=False, title=f"Arms of {route.experiment}")


@app.command()
@with_settings
def undeploy(
    model: ModelName,
    data: Data = None,
    *,
    settings: UndeploySettings,
    as_json: AsJson = False,
) -> None:
    """Withdraw a model's traffic, drain its deployment, stop it and delete it."""
    from pipeline.models import undeploy as undeploy_model

    folder = find_data(data)
    with progress_bar("undeploying") as progress, interruptible(folder):
        rows = undeploy_model(folder, model, why=settings.why, progress=progress)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        show(
            [{key: getattr(row, key) for key in ("id", "name", "state", "reason")} for row in rows],
            as_json=False,
            title="Undeployed",
        )
    if not rows:
        print_note(f"nothing of model {model} was deployed: nothing was stopped")


@app.command("turn", hidden=True)  # its older name
@app.command("cycle")
@with_settings
def cycle(
    decision_type: DecisionType,
    data: Data = None,
    *,
    settings: CycleSettings,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only print the steps, their prices and what blocks them; spends nothing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a cycle of the flywheel: export, fine-tune, deploy, evaluate, then promote or drop. Resumes where it was."""
    from functools import partial

    from pipeline.cycle import Verbs, plan_cycle, run_cycle
    from pipeline.errors import FlowBusy
    from pipeline.evaluation import evaluate_model
    from pipeline.exclusive import exclusive_run
    from pipeline.models import deploy as deploy_model
    from pipeline.models import export as export_dataset
    from pipeline.models import fine_tune as train

    folder = find_data(data)
    name = check_decision_type(decision_type, folder)
    if plan:
        _show_plan(plan_cycle(folder, name, settings), as_json=as_json)
        return
    with (
        exclusive_run(folder, f"turn_flywheel-{name}", "skip") as ours,
        progress_bar(f"turning {name}") as progress,
        interruptible(folder),
    ):
        if not ours:
            raise FlowBusy(f"{name} has a cycle running in another process: wait for it, then run this again")
        verbs = Verbs(
            export=partial(export_dataset, progress=progress),
            fine_tune=partial(train, progress=progress),
            deploy=partial(deploy_model, progress=progress),
            evaluate=partial(evaluate_model, progress=progress),
        )
        found = run_cycle(folder, name, settings, verbs=verbs)
    show(found, as_json=as_json, title="The flywheel")


def _show_plan(plan: CyclePlan, *, as_json: bool) -> None:
    """Print a plan: a table of steps, a table of budgets, and what blocks it. Exits with 1 if anything does."""
    if as_json:
        print_json(plan)
    else:
        total = {"step": "in all", "amount_usd": plan.amount_usd, "hourly_usd": plan.hourly_usd, "what": ""}
        steps = [asdict(step) for step in plan.steps]
        show([*steps, total], as_json=False, title=f"A cycle of {plan.decision_type}")
        show([asdict(need) for need in plan.budgets], as_json=False, title="Budgets")
        for note in plan.notes:
            print_line(note)
        for why in plan.blocked_by:
            print_line(f"Blocked: {why}")
        if not plan.blocked_by:
            print_line("Nothing blocks it.")
    if plan.blocked_by:
        raise typer.Exit(1)


@models_app.command("list")
def list_models(data: Data = None, watch: Watch = False, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """List the models: state and the reason for it, what serves them, cost."""
    from provider.lifecycle.status import model_status

    columns = (
        "model_id",
        "name",
        "decision_type",
        "base_model",
        "state",
        "why",
        "enabled",
        "deployment_state",
        "requests",
        "cost_usd",
    )
    folder = find_data(data)

    def once() -> None:
        rows = model_status(folder)
        shown = rows if as_json or as_csv else [{key: row[key] for key in columns} for row in rows]
        show(shown, as_json=as_json, as_csv=as_csv, title="Models")

    watch_output(watch, once)


@models_app.command()
@with_settings
def register(
    name: Annotated[str, typer.Argument(help="A name of your choice; it is in the log and in the ledger for ever")],
    decision_type: Annotated[str, typer.Option("--type", help=parameters.DECISION_TYPE_HELP)],
    url: Annotated[str, typer.Option("--url", help="URL of the server, such as https://gpu.example")],
    model: Annotated[str, typer.Option("--model", help="The model's name at its server")],
    data: Data = None,
    *,
    settings: RegisterSettings,
    as_json: AsJson = False,
) -> None:
    """Register a model that somebody else runs at an OpenAI-compatible URL, after asking it one question."""
    from pipeline.registration import register_model

    folder = find_data(data)
    found = register_model(folder, name, check_decision_type(decision_type, folder), url, model, settings)
    shown = ("name", "id", "decision_type", "base_url", "base_model", "logprobs")
    show(
        found if as_json else {key: getattr(found.model, key) for key in shown},
        as_json=as_json,
        title=f"Registered; next: reasoning evaluate {found.model.id}",
    )
    for note in () if as_json else found.notes:
        print_note(note)


@models_app.command()
def unregister(
    name: Annotated[str, typer.Argument(help="The name, or the id, of a registered model")],
    data: Data = None,
    why: Annotated[str, typer.Option("--why", help="The reason that is recorded in the ledger.")] = "by the user",
    as_json: AsJson = False,
) -> None:
    """Withdraw a registered model for good. Its server is not touched."""
    from pipeline.registration import unregister_model

    row = unregister_model(find_data(data), name, why=why)
    show(
        row if as_json else {"name": row.name, "id": row.id, "state": row.state}, as_json=as_json, title="Unregistered"
    )


@models_app.command()
def status(model: ModelName, data: Data = None, as_json: AsJson = False) -> None:
    """Show everything about one model."""
    from pipeline.selection import find_model
    from provider.lifecycle.status import model_status
    from storage.ledger.ledger import open_ledger

    folder = find_data(data)
    with open_ledger(folder) as ledger:
        model_id = find_model(folder, ledger, model, "show").id
    for row in model_status(folder):
        if row["model_id"] == model_id:
            show(row, as_json=as_json, title=f"Model {model_id}")


@models_app.command()
def card(model: ModelName, data: Data = None, as_json: AsJson = False) -> None:
    """Show the card of a model as Markdown: its quality, where it is weak, what it won and lost."""
    from pipeline.evaluation import show_card
    from quality.evaluation.model_card import as_markdown

    found, questions = show_card(find_data(data), model)
    if as_json:
        print_json({**found.as_dict(), "questions": questions})
    else:
        print_line(without_controls(as_markdown(found, questions).rstrip()))


@models_app.command()
def history(
    model: Annotated[str, typer.Argument(help="A model's id, or a decision type for all of its models")],
    data: Data = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List what became of a model and what serves it, or of all models of a type, and why; the latest last."""
    from pipeline.selection import find_model
    from storage.ledger.ledger import open_ledger
    from storage.ledger.reports import model_history, type_history

    folder = find_data(data)
    with open_ledger(folder) as ledger:
        rows = type_history(ledger, model.replace("-", "_"))
        if not rows:
            rows = model_history(ledger, find_model(folder, ledger, model, "show").id)
    title = f"History of {model}"
    shown = rows if as_json or as_csv else [without(row, "numbers") for row in rows]
    show(shown, as_json=as_json, as_csv=as_csv, title=title)


@models_app.command("jobs")
def list_jobs(data: Data = None, watch: Watch = False, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """List fine-tunes: state, estimated and actual cost, and the resulting model."""
    from storage.ledger.ledger import open_ledger

    columns = ("id", "decision_type", "base_model", "state", "estimate_usd", "price_usd", "model_id")
    from storage.ledger.rows import FineTuneJob

    folder = find_data(data)

    def once() -> None:
        with open_ledger(folder) as ledger:
            rows = [asdict(row) for row in ledger.find(FineTuneJob)]
        shown = rows if as_json or as_csv else [{name: row[name] for name in columns} for row in rows]
        show(shown, as_json=as_json, as_csv=as_csv, title="Jobs")

    watch_output(watch, once)


@models_app.command()
def cancel(
    job: Annotated[str, typer.Argument(help="A fine-tune's id (`reasoning models jobs`)")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a fine-tune. Training up to then is charged."""
    from pipeline.models import cancel_job

    show(asdict(cancel_job(find_data(data), job)), as_json=as_json, title=f"Fine-tune {job}")
