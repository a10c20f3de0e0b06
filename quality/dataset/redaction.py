"""Whether the rows of a dataset were redacted as agents redact their prompts now."""

from __future__ import annotations

from quality.dataset.manifest import Manifest
from reasoning.config import Config
from reasoning.redaction.redact import REDACTION_VERSION


def redaction_note(manifest: Manifest, config: Config) -> str | None:
    """What differs, and what to do; None where a model of the dataset is asked what it has learned.

    The version of `phonenumbers`, whose data changes monthly, makes no difference that is worth another training.
    """
    settings = config.redaction
    if not settings.enabled:
        return "Agents do not redact prompts ([redaction] enabled = false), the rows of the dataset are redacted."
    rules, region = manifest.query.get("redaction"), manifest.query.get("region")
    ours = REDACTION_VERSION.partition("+")[0]
    if rules is not None and str(rules).partition("+")[0] != ours:
        found = f"by the rules {rules}, prompts of agents by {REDACTION_VERSION}"
    elif region is not None and region != settings.region:
        found = f"with the region {region}, prompts of agents with {settings.region} ([redaction] region)"
    else:
        return None
    return f"The rows of the dataset were redacted {found}: export it again, and train on that."
