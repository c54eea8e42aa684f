"""Datasets that need no download: scans that scikit-learn ships, and pictures that are drawn when they are read.

Each file has open_source and fingerprint for its keys; read digits.py first.
"""

MIRRORED_OTHERWISE = ("digits", "letters", "signboards")  # what keys begin with whose pictures mean others if mirrored
