"""pcdd: dataset distillation for point clouds, by moving the points.

`__init__.pyi` lists the public names. Each is imported at its first use, so `import pcdd_core` is
fast.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
