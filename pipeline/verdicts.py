"""The verdicts that evaluations reached, from the ledger."""

from __future__ import annotations

from pipeline.errors import MissingStep
from quality.evaluation.promotion import PromotionDecision
from storage.ledger.ledger import Ledger
from storage.ledger.lives import EvaluationRow, last_evaluation, read_evaluation


def read_verdict(ledger: Ledger, evaluation_id: str) -> PromotionDecision:
    """The verdict that `evaluate_model` reached in an evaluation. Raises `MissingStep` where there is none."""
    found = read_evaluation(ledger, evaluation_id)
    if found is None:
        raise MissingStep(f"no evaluation {evaluation_id} in the ledger: run `reasoning evaluate MODEL` again")
    return _verdict(found)


def last_verdict(ledger: Ledger, model_id: str) -> PromotionDecision | None:
    """Verdict of the newest evaluation of a model, None without one."""
    found = last_evaluation(ledger, model_id)
    return None if found is None else _verdict(found)


def _verdict(evaluation: EvaluationRow) -> PromotionDecision:
    try:
        return PromotionDecision(**evaluation.content["about"]["verdict"])
    except (KeyError, TypeError) as error:
        raise MissingStep(
            f"no verdict in evaluation {evaluation.id} ({error!r}): run `reasoning evaluate MODEL` again"
        ) from error
