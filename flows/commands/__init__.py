"""The commands of the console script. Each is thin; what it does has a module of its own.

Heavy libraries are imported by the commands that need them, so that `--help` is quick.
"""
