"""Run `pcdd` as `python -m pcdd_core`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
