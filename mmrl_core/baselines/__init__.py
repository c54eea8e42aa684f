"""What is fitted on frozen features by few-shot validation: the baselines, and what an adapter gets once it is trained.

Read fit.py first; finish.py gives a trained adapter its probe, temperatures and threshold.
"""
