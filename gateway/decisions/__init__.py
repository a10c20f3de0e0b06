"""Decisions: asked for outright, or recognised in the prompts of agent frameworks."""
