"""Fixtures that more than one room uses."""

from __future__ import annotations

import os

# Before anything imports prefect or great_expectations: no telemetry from a test run.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
