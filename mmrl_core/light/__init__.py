"""Predictions by NumPy: for a few images, importing PyTorch takes longer and needs more memory than all the rest.

Read predictor.py first. What is read is verified as `mmrl_core/predict.py` does it; what this room does not cover, such
as classes that the adapter was not trained on, is left to that.
"""
