"""Operating the gateway: pages, metrics, logs, traces, prices, records."""
