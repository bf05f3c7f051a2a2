"""Outputs of trained models into numbers, each with an interval."""
