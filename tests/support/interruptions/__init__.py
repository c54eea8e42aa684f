"""Commands that change the registry, killed before every one of their changes in turn, and what is there afterwards.

No interruption point is named by hand: changes.py counts what a command does to the store and to the folder, and ends
the process before the n-th. server.py starts a command in hundredths of a second, in a process forked from one that has
imported everything; commands.py is what runs there, scenarios.py what is killed and what it is compared with.
"""
