"""`admin.py status`: where every change is, and what is wrong.

flow      ask all stages at once, in time, and see whether anything moves
stages    the figures of each stage
holders   who holds locks and open transactions at the source
lateness  how old and how late changes are
alarms    what is wrong, and what to do
screen    how all that is shown; `watch` redraws it all the time
forms     as a screen, as JSON, as one line for cron
"""
