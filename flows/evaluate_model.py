"""Is the candidate better?"""

from __future__ import annotations

from prefect import flow

from pipeline.parameters import EvaluateSettings
from quality.evaluation.evaluate import Evaluation
from tasks.model_tasks import evaluate
from tasks.parameters import with_settings
from tasks.runs import DataFolder, Moment, data_folder, utc


@flow(name="evaluate_model")
@with_settings
async def evaluate_model(
    model: str,
    data: DataFolder = None,
    *,
    settings: EvaluateSettings,
    now: Moment = None,
) -> Evaluation:
    """Ask candidate and incumbent every question of the holdout, compare them and the original, and reach a verdict."""
    return evaluate(data_folder(data), model, settings, now=utc(now))
