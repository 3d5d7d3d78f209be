"""Scoring: evaluation of clouds by fresh classifiers, and baselines of real clouds."""
