"""Episodes decision by decision: what is in them, how they are saved and recorded, and measures of scan paths."""

from hsal_env.trace.episode import Trace, load, save

__all__ = ["Trace", "load", "save"]
