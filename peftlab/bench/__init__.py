"""Measured against the peers: the same function, the time of a step, its memory, and how long the labs take.

`python3 go.py bench` prints the tables and appends their rows to data/results/bench-<suite>.jsonl. All backbones have
random weights of real shapes: for equality, time and memory their values do not matter.
"""
