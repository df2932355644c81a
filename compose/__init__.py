"""Composition: the only place that knows which parts a run has, and what they are called."""
