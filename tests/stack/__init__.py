"""stack/: the servers without Docker."""
