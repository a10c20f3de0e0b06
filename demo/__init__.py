"""The whole wheel on real conversations."""
