"""Settings, presets, runs, records, tables and sweeps."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["figures"])
