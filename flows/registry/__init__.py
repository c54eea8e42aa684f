"""Versions of adapters in MLflow's registry, which of them is the champion, and what is released.

versions.py registers and fetches; promotion.py moves the champion's alias; contest.py lets champion and challenger
classify the gate's images; releases.py bundles the champion and moves the alias `released`. The gate's rule is
mmrl_core/evaluation/gate.py.
"""
