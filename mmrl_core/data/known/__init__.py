"""What is known of image files from before: the digest of their bytes, and that they can be decoded. It only saves
time: read reading.py first; store.py keeps it."""
