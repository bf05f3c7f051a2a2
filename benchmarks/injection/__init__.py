"""Fault injection, which benchmarks/faults.py drives."""
