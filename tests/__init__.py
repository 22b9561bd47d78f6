"""Trainings that are compared byte by byte must not measure how many threads are fastest."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
