"""The frozen backbone: loading and checking a CLIP, its two towers, and what they say of images, kept on disk.

Read backbone.py first, then towers.py, text_tower.py and insertion.py, where representation tokens enter; families/
reads the modules of other libraries, weights/ their files. Adapters and their settings are unknown here.
"""

LOGIT_SCALE = 100.0  # of cosines
