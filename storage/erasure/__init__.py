"""Erasure of one person from everything that is kept."""
