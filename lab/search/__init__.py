"""Optuna studies over what a declaration can set."""
