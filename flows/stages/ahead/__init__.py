"""One process for several stage items of `dvc repro`: starting one costs more than what a small item does.

The first item's process also makes what the next ones will be asked for, where that is nearly free: `mmrl evaluate` all
runs on a dataset in one pass over its images, `mmrl train` the other seeds with a small backbone or, in the same steps,
on a GPU. ready.py keeps such outputs below .mmrl/ready until their items come and take them, without importing torch;
identity.py tells which output is whose, by digest of all that its bytes depend on; items.py is what the stage commands
call under DVC.

Every item still makes the same bytes, and fails by itself: what could not be made ahead is made when it is asked for.
"""
