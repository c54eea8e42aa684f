"""Every reader of a file or request that comes from elsewhere, given damaged ones: it ends in one line, or reads.

library.py and pipeline.py list the readers; a new one is an entry there. damage.py makes the damaged inputs, by
hypothesis and the same ones every time. `make test` gives each a few, `make test-endurance` many;
MMRL_READER_INPUTS says how many where somebody wants others.
"""
