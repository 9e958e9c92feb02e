"""Measurements that the claims of README and docs rest on: a case names a function here, run.py runs it."""
