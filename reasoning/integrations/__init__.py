"""Thin adapters for agents' frameworks, one module each. A module imports its framework; nothing else does."""
