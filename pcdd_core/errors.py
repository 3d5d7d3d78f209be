"""The ways in which a run can end early: the input is wrong, its folder is in use, or it has produced numbers that are none."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, where, and what would be right.

    The command line prints it and exits with code 2; nothing has been written when it is raised.
    """


class EngineMissing(InputError):
    """MinkowskiEngine is asked for and not installed, or not for this PyTorch."""


class FolderInUse(InputError):
    """Another process is running in the folder of a run."""


class RunFailed(RuntimeError):
    """Numbers came up that cannot be continued from; the message says when, what, and why."""


class DistillationFailed(RunFailed):
    """The distillation produced numbers that cannot be continued from; the message says when and why."""

    def __init__(self, iteration: int, what: str, likely_cause: str):
        super().__init__(f"iteration {iteration}: {what}; likely cause: {likely_cause}")
        self.iteration, self.what, self.likely_cause = iteration, what, likely_cause


class EvaluationFailed(RunFailed):
    """The training of a classifier diverged, so that there is no score; the message says when."""


def extra_missing(package: str, extra: str, otherwise: str = "") -> InputError:
    """The error for a package of an optional dependency group that is not installed."""
    hint = f" {otherwise}" if otherwise else ""
    return InputError(f"the package {package} is not installed: pip install 'pcdd[{extra}]'{hint}")


def nearest_names(name: str, valid: Iterable[str]) -> str:
    """A clause for error messages: the valid names closest to `name`, or all of them if none is close."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    return "nearest: " + ", ".join(close) if close else "valid: " + ", ".join(valid)
