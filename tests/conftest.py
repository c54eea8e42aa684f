import os

# Before torch is imported: a barrier of spinning threads stalls whenever another process has the core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
