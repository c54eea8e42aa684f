"""Datasets of the user's own, as data.own of params.yaml describes them: folders, tables, WebDataset shards.

Read dataset.py first; settings.py has the keys.
"""
