"""Exceptions: invalid input, a folder in use, and numerical failure (NaN or infinite values)."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Invalid input from the user. The message says what is wrong, where, and what would be right.

    The command line prints the message and exits with code 2. Nothing has been written when this
    error is raised.
    """


class EngineMissing(InputError):
    """MinkowskiEngine is requested, but it is missing or was built for another PyTorch."""


class FolderInUse(InputError):
    """Another process is running in the folder of a run."""


class WriteFailed(InputError):
    """A file cannot be written: the disk is full, a quota is used up, or the device failed.

    Files written before it are complete.
    path: the file, or None if it is not known
    reason: the message of the operating system
    advice: what is safe, and what to do
    """

    def __init__(self, path: object, reason: str | None, advice: str | None = None):
        advice = advice or (
            "files written before are complete; free space there or choose another folder, then "
            "repeat the command"
        )
        super().__init__(f"{path or 'a file'}: cannot be written ({reason}); {advice}")
        self.path, self.reason = path, reason


class RunFailed(RuntimeError):
    """A run failed numerically and cannot continue. The message says when, what and why."""


class DistillationFailed(RunFailed):
    """The distillation failed numerically and cannot continue.

    The message gives the iteration, the failure (`what`) and the likely cause.
    """

    def __init__(self, iteration: int, what: str, likely_cause: str):
        super().__init__(f"iteration {iteration}: {what}; likely cause: {likely_cause}")
        self.iteration, self.what, self.likely_cause = iteration, what, likely_cause


class EvaluationFailed(RunFailed):
    """The training of a classifier diverged, so there is no score. The message says when."""


def extra_missing(package: str, extra: str, otherwise: str = "") -> InputError:
    """Build the error for a missing package of an optional dependency group.

    package: its name
    extra: the group that contains it
    otherwise: a hint that follows the message
    """
    hint = f" {otherwise}" if otherwise else ""
    return InputError(f"the package {package} is not installed: pip install 'pcdd[{extra}]'{hint}")


def nearest_names(name: str, valid: Iterable[str]) -> str:
    """Format a clause for error messages: the closest valid names, or all if none is close."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    return "nearest: " + ", ".join(close) if close else "valid: " + ", ".join(valid)
