"""MMRL and MMRL++ for CLIP as a library: the method, its data and its evaluation."""

# Part of what every adapter depends on: raise it when the same data and settings would train to another adapter.
METHOD_VERSION = 4
# The same of every shard: raise it when the same source would be sampled or written differently.
DATA_VERSION = 3
# And of every evaluation: raise it when the same adapter would get other figures, or figures on other images.
EVALUATION_VERSION = 1
