"""What tests can only sample, gone through completely: every interleaving, on models that are tied to the code.

    explore    go through every state that a model can reach
    protocol   how a poll reads the log: ours, and what can be left out of it
    reading    the reading protocol as a model: writers, polls, pages, saves, crashes
    wrong      protocols that look right, each with the interleaving that breaks it
    story      such an interleaving on a time line, a column for each side
    statement  the product's own statements on the explored snapshots, answered by PostgreSQL
    gate       the gate: two consumers, and the statements that apply a batch
    gate_story ways to apply changes that look right, each with the interleaving that breaks it
    record     the polls of a real producer, written down
    replay     the same, replayed through the model of reading
    asleep     falling asleep: asleep.pml, a model that spin goes through

`make prove` runs all of it.
"""
