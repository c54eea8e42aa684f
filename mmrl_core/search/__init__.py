"""What a trial of the search measures, on which divisions of the classes, and how trials compare. Ray is unknown here.

Read objective.py first. partitions.py and comparison.py are without torch.
"""
