"""`python -m pcdd_core` is `pcdd`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
