"""Readers of public formats: files on this disk in, records out; one file a format, nothing executed.

A reader walks its files once, from front to back, and holds one record at a time. What it yields becomes an
index (lab/samples/indexing.py), from which any row is read again by its number.
"""
