"""Stands for the lab in a snapshot of the code: jobs import it in place of the real one."""
