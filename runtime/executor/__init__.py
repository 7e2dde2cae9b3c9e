"""Run a program: a checked NumPy interpreter and a threaded one."""
