"""MMRL and MMRL++: the learnable tensors, the forward pass, the loss and the form for inference.

Read adapter.py and model.py first; docs/method.md has the mathematics and where each line of it is.
"""
