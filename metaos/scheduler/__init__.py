"""Placement as pure functions: filters reject with a reason, scores weigh in units, a solver chooses."""
