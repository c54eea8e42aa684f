"""What a project that runs for months needs: removing old things, and the registry in one file and back.

cleanup.py and backup.py know the registry, the MLflow store and DVC's cache; no stage needs them.
"""
