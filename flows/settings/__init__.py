"""params.yaml as types: read, checked, edited, and resolved to the values of one run. No torch, no other tool.

Read params.py first, then sections.py for the keys and resolve.py for where a null's value comes from.
"""
