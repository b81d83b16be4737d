"""Timings and comparisons, each made by one command."""
