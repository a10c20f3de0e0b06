"""Prefect tasks: functions of the other packages with retries, progress and artifacts."""
