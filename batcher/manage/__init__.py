"""What is done to a job that exists.

status.py   where it stands: rows, rates, workers
in_flight.py what is made of rows that have no result yet
speedometer.py how fast a job goes, and when it will be done
worked.py   in which times a job was worked on
finish.py   the proof that all rows have results, and the summary
repair.py   parts that went bad after their commit
resume.py   a job is taken up again
cancel.py   workers stop, what is finished stays
pause.py    the same for a while
drain.py    workers finish their shards and end
prioritize.py  it gets another place among others
retry.py    failed rows run again
finished.py the result rows that exist now
joined.py   answers joined to the input
query.py    results by SQL
differences.py two jobs compared row by row
export.py   results in other forms
delete.py   the job goes, also while it is worked on
"""
