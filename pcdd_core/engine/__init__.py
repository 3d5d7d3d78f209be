"""The method: lifts, matching losses, distillation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["lifts"])
