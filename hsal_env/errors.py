"""The errors that HSAL raises on purpose. Each message says what came, what was expected, and what to do."""


class HSALError(Exception):
    """Base class: catch this to catch every deliberate error of the project."""


class ConfigError(HSALError, ValueError):
    """An argument is outside its documented range or names something unknown."""


class UnknownArgumentError(ConfigError, TypeError):
    """A keyword argument that nothing takes. As Python's own TypeError, which libraries look for, the message names it."""


class DataError(HSALError, ValueError):
    """Images, labels or a data file are missing, damaged or of the wrong shape, dtype or range."""


class DataUnavailableError(DataError, FileNotFoundError):
    """A data set, or published weights, were found nowhere and could not be downloaded."""


class ActionError(HSALError, ValueError):
    """An action lies outside the action space."""


class CheckpointError(HSALError, ValueError):
    """A checkpoint is cut off, damaged, or does not fit the model it is loaded into."""


class DivergenceError(HSALError, ArithmeticError):
    """Training has left the range of floating-point numbers."""


class ProcessError(HSALError, RuntimeError):
    """Another process of the same run ended before its time."""
