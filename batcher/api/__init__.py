"""The public Python API that `import batcher` offers, made of the functions of the rooms below.

jobs.py      jobs begin: run, submit, open
estimating.py  what a job will take, before it runs: estimate
fleet_estimate.py  the same of the workers of a jobs folder, by what they have done
job.py       a job: status, wait, results, retry, resume, pause, cancel, export
fleet.py     the workers of a jobs folder, and those of its broker that work elsewhere
source.py    paths, dicts and tables as inputs
options.py   the options of jobs and workers, checked
constraint.py  those of them that say what every text must be
results.py   results as tables of Arrow, pandas, Polars
diff.py      two jobs compared
order.py     the order of steps by which a job begins and goes on; also for the command line
work.py      a job is worked on: here, or by the workers of a broker
engines.py   workers of this machine: which models they serve, and how; also for the command line
servers.py   engines behind URLs, and which of their models
progress.py  how a job proceeds, shown to a person; also for the command line
status_texts.py  what is said of a status wherever it is shown
screen.py    a status as the lines of a screen
widths.py    texts in the columns of a terminal
terminal.py  lines at the bottom of a terminal that are drawn anew
"""
