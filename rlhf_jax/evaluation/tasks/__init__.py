"""Capability tasks: items, how files of them are read, what outcomes are worth.

programs/task_runs.py has a policy do them.
"""
