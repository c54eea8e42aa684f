"""Every reader of a file or request that comes from elsewhere, given damaged ones: it ends in one line, or reads.

The readers are listed at the ends of data.py, weights.py, results.py, registry.py, serving.py and command_line.py; who
adds one adds an entry. damage.py makes the damaged inputs, by hypothesis and the same ones every time. `make test`
gives each reader a few, `make test-endurance` many; MMRL_READER_INPUTS says how many where somebody wants others.
test_found.py has what was found, an input of each kind.
"""
