"""A project folder: made by `mmrl init` (new.py), brought to the installed release by `mmrl upgrade` (upgrade.py).

What is put there is in flows/template, links to this repository's own files, which a wheel holds as files.
"""
