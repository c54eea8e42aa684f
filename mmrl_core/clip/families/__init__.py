"""One reader a family: what the towers have to know of open_clip's, timm's and transformers' modules, and nothing else.

`images.py` and `texts.py` say what there is to know and find the reader; `problem` of either says why there is none.
"""
