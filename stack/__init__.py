class Trouble(Exception):
    """What went wrong, in words for the user."""
