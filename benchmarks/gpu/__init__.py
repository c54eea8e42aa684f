"""One script for one card: whether it computes what it should, and how fast. `python -m benchmarks.gpu`."""
