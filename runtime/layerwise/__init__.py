"""Running a model one layer at a time over many rows: calibration and comparison of models larger than memory.

``source.py``     a checkpoint as something to run
``split.py``      a program cut into segments at its layers
``weights.py``    one segment's weights in memory, as floats or as the file has them
``hidden.py``     the rows between two layers, in a temporary file
``runner.py``     ``LayerwiseRunner``: puts them together; read its docstring first
"""
