"""What it costs, measured beside its peers: one module a question. ``python -m benchmarks`` asks them all."""
