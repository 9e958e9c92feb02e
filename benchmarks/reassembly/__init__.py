"""Benchmarks of deep model reassembly."""
