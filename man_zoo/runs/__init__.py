"""A run folder: what training writes, and export, evaluation, analysis and results read."""
