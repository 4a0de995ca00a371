"""See the plain design of change data capture lose rows beside ours: python -m lose.

__main__     the command: a run on a terminal or as lines, and its verdict
experiment   both designs on one source, from the set-up to the last row's arrival
writers      concurrent transactions, and what each has committed
poller       the plain design's producer, which writes each of its polls down
faults       what the keys do: hold a transaction open, kill the consumers, stop Kafka
reasons      why a row did not arrive: which poll passed it, and when it was committed
show         the tables and the lines
"""
