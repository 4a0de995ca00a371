"""The scripts at the command line."""
