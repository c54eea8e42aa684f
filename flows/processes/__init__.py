"""Processes that die with the one that started them: stages with `dvc repro`, children of a flow, a local Ray cluster.

Nothing of the project is imported here. Read under_dvc.py first.
"""
