"""The AMX kernels of our build, tried on a processor that has AVX-512 and no AMX. Not collected by pytest.

run.py        builds llama.cpp with AMX and runs the tests of kernels on it: `python -m tests.amx.run`
emulator.cpp  carries out the instructions on tiles that the processor does not know
"""
