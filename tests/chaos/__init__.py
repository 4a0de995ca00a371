"""Chaos: faults of all kinds under load, one after the other; `python -m tests.chaos --help`."""
