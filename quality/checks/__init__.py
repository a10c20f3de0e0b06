"""Checks of the decision log, judged by Great Expectations."""
