"""The method: lifts, objectives, distillation, evaluation, baselines."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["lifts"])
