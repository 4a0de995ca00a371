"""How fast, how late and how dear, beside native replication and the plain design: python -m bench.catch_up …"""
