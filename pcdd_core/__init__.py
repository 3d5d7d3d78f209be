"""pcdd: dataset distillation for point clouds, by moving the points.

The public names for notebooks and scripts. Each module is imported at the first use of one of its
names, so that `import pcdd_core` is fast.
"""

import importlib

_PUBLIC = {
    "PointClouds": "clouds",
    "load_clouds": "clouds.load",
    "save_clouds": "clouds.save",
    "released": "clouds",
    "released_names": "clouds",
    "released_path": "clouds",
    "clouds_from_list": "clouds.from_list",
    "clouds_from_unit_ball": "clouds.from_unit_ball",
    "into_grid": "clouds.into_grid",
    "read_shape": "shapes",
    "load_data": "datasets.load",
    "Config": "config",
    "override": "config",
    "to_dict": "config",
    "preset": "presets",
    "PRESETS": "presets",
    "distill": "distillation",
    "Step": "distillation",
    "initial_clouds": "distillation",
    "missed_gradient": "second_order",
    "evaluate": "evaluation",
    "project": "evaluation",
    "BASELINES": "coresets",
    "run": "runs",
    "score": "runs",
    "EXPERIMENTS": "experiments",
    "INGREDIENTS": "experiments",
    "experiment": "experiments",
    "obtain": "sweeps",
    "finished": "sweeps",
    "watch": "live",
    "show": "live",
    "Recording": "player",
    "still": "player",
    "read_recording": "player",
    "save_player": "player",
    "save_animation": "player",
    "table": "records",
    "read_record": "records",
    "read_trajectory": "records",
    "InputError": "errors",
    "RunFailed": "errors",
    "DistillationFailed": "errors",
    "EvaluationFailed": "errors",
    "PointNet": "point_networks",
    "figures": "",
    "lifts": "",
    "sparse": "",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pcdd_core' has no attribute {name!r}")
    module, _, attribute = (_PUBLIC[name] or name).partition(".")
    loaded = importlib.import_module(f".{module}", __name__)
    return loaded if not _PUBLIC[name] else getattr(loaded, attribute or name)


def __dir__():
    return __all__
