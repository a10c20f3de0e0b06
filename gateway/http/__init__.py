"""HTTP: requests within limits, forwarding byte for byte, upstreams, and who may come in."""
