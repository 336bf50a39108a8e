"""`doctor --box`: is the machine itself well, and what do its parts do at their best?

report.py       the command: the time box, the soak, red lines first
health.py       judges what vitals.py saw without timing anything; rates.py judges what was timed
probes.py       what is timed, also for a run's own device: laps.py, disk.py, and ranks.py for other processes
"""
