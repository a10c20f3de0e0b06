"""Prefect tasks: the rooms' functions with retries, progress and artifacts."""
