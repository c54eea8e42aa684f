"""The Ray Tune search over adapter and training settings; the objective itself is mmrl_core/search/objective.py.

Read search.py first: resume or begin, run, choose. tuner.py is what Ray Tune is told, trainable.py runs in its workers,
ledger.py keeps the trials on disk. The driver never imports torch.
"""
