"""Results over seeds: the tables that tools read, and the page that people read, from the files of the runs. No torch.

Read summary.py first: what `mmrl summarize` writes.
"""
