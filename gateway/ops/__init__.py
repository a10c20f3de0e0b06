"""Operating the gateway: pages, metrics, logs, traces, records."""
