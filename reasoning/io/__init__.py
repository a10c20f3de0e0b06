"""Bytes in and out: HTTP, server-sent events, bounded JSON, the spool."""
