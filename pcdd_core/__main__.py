"""Run `pcdd` as `python -m pcdd_core`."""

from .cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
