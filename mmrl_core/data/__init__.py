"""Datasets, few-shot sampling, shards and views. Only views.py imports torch.

Read source.py first (what a dataset is), then catalog.py (which there are), splits.py (who is sampled) and shards.py
(how it is written). The kinds of datasets are in embedded/, benchmark/ and own/.
"""
