"""The papers' fifteen datasets, in the folders of CoOp's benchmark.

Each file has needs, template, read, open_source and fingerprint for its keys; read coop.py first.
"""
