"""Evaluation: how right each source of answers is, with intervals, and which model may serve."""
