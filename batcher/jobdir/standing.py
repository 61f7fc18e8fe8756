"""Where a job stands among others: its priority."""

#: Priorities go from 0 to 9, which is the most urgent.
PRIORITIES = range(10)
NORMAL = 5
