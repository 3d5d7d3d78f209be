"""Networks on grids and on points, and classifiers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["sparse"])
