from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quality.dataset.manifest import read_manifest
from quality.dataset.redaction import redaction_note
from reasoning.config import Config, Redaction, load_config
from tests.quality.test_dataset import _export


@pytest.fixture
def config(data: Path) -> Config:
    return load_config(data, env={})


def test_a_dataset_that_was_redacted_otherwise_is_told(data: Path, config: Config) -> None:
    manifest = read_manifest(_export(data, config=replace(config, redaction=Redaction(region="GB"))).path)
    assert redaction_note(manifest, replace(config, redaction=Redaction(region="GB"))) is None
    told = redaction_note(manifest, config)
    assert told and "with the region GB, prompts of agents with US" in told and "export it again" in told
    older = replace(manifest, query={**manifest.query, "region": "US", "redaction": "2+phonenumbers-9.0.0"})
    told = redaction_note(older, config)
    assert told and "by the rules 2+phonenumbers-9.0.0" in told
    newer = replace(older, query={**older.query, "redaction": "3+phonenumbers-8.0.0"})
    assert redaction_note(newer, config) is None
    told = redaction_note(newer, replace(config, redaction=Redaction(enabled=False)))
    assert told and "Agents do not redact" in told
