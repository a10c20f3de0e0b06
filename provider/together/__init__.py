"""Together: its connection, its answers, its files, fine-tunes, models and prices."""
