"""Stand-in."""
from __future__ import annotations

def measures(traces, rng):
    return {"saccade length, cells": {"agent": 5.25, "uniform": 6.5, "centre": float(rng.random())}, "return fixations": {"agent": 0.25, "uniform": 0.05, "centre": 0.1}, "dwell on objects": {"agent": 0.95, "uniform": float("nan"), "centre": 0.3}}
