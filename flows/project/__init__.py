"""What every stage shares: where its files lie, how they come whole, what it says of its progress, its backbone.

Read paths.py first, then outputs.py (locks, outputs renamed into place) and progress.py. Knows settings and library.
"""
