"""What an adapter is worth: scores, calibration, intervals, thresholds for abstaining, and the promotion gate's rule.

Read scores.py first. gate.py and bootstrap.py are numbers alone, without torch.
"""
