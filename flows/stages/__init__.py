"""What `dvc repro` runs, a file a stage: functions from settings and prepared files to an output folder.

They know neither Prefect nor DVC's graph. Read train.py first. The search is a stage too: flows/tuning/search.py; the
report's is flows/report/summary.py. ahead/ lets one process work for several items.
"""
