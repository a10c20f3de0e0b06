"""Datasets: selected, labelled, redacted, deduplicated, split and accounted for."""
