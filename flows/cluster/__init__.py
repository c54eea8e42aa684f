"""Ray: joining or starting a cluster, and training and scoring on it. MLflow and DVC are unknown here.

Read connection.py first; training.py puts `fit` into Ray Train's workers, scoring.py makes a task of every shard.
"""
