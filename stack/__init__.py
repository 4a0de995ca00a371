class Trouble(Exception):
    """What stops us, in words for the user."""
