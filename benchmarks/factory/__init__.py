"""Benchmarks of NN-Factory."""
