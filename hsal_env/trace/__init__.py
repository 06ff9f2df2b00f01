"""Traces: recorded episodes, decision by decision. What they hold, how they are recorded and saved, and scan-path measures."""

from hsal_env.trace.episode import Trace, load, save

__all__ = ["Trace", "load", "save"]
