"""The containers tried on a real engine: build, use, faults, limits and users. Not collected by pytest, nor part of CI.

engine.sh    an engine started by hand, where there is none, and base images without a registry
trial.py     the trial; a line of its report for each thing that must hold
compose.py   docker and docker compose, as the trial calls them
chart.py     the Helm chart: linted, rendered, held against the API's schema, and written down for the unit tests
"""
