"""Slice-and-Pack by the protocol of the paper: tasks, originals, methods, tables and figures."""
