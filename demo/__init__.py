"""The demo: a full cycle of the flywheel on real conversations."""
