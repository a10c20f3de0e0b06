"""Coding turns: recognised, translated for a model of ours, answered and recorded."""
