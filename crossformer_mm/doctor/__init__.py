"""What is installed, what will run, and what is wrong: ``python -m crossformer_mm.doctor``.

Its modules import the libraries within functions only: the doctor has to start without them.
"""
