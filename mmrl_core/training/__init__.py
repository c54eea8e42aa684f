"""The training loop, its steps and its checkpoints. A run is a function of its settings and data alone.

Read fit.py first, then batches.py and step.py; stack.py takes the steps of several runs together.
"""
