"""Numbers that a classifier sees of a transcript, fitted to the training rows."""
