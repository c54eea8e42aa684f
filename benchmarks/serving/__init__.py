"""Serving against its peers, and against what may befall it: `python -m benchmarks.serving`."""
