"""`admin.py check`: is the set-up right?

settings  Python, its packages, and where each setting comes from
servers   the databases and Kafka
finding   what was found: one line
report    how the findings are shown
"""
