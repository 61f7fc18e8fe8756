"""Settings of all tests."""

from hypothesis import settings

# A gate that draws other examples each time is passed or failed by chance, one with a deadline by the machine's load.
# `pytest --hypothesis-profile=explore` looks for new examples.
settings.register_profile("gate", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile("gate")
