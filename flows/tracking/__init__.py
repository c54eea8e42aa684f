"""The MLflow store: connecting to it, the runs that stages write, who may change the registry.

Read store.py first. A store that does not answer costs a stage one warning: run.py keeps what it misses and sends it
later.
"""
