"""What we ask of Together, idempotently, and what it costs."""
