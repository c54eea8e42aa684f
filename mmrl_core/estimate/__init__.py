"""What a training costs, from configurations alone: parameters, memory, operations, time; and whether it can fit.

Read training.py first; memory.py and costs.py have the formulas, machine.py what there is.
"""
