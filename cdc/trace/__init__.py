"""`admin.py trace`: where one employee's changes are.

sides    what each side holds of it: the rows, the log, the topic, the gate, the dead letters
search   the last messages of an employee in a topic
verdict  where its newest change hangs, and what to do
screen   how all that is shown
"""
