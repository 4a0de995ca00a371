"""The source: what its triggers log, and how the producer reads the log without losing a row."""
