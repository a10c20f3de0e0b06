"""What may be learned from, and whether a model has learned it."""
