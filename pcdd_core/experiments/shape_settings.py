"""Settings of the presets for three-dimensional shapes, see `presets`."""

# Shapes in three dimensions, as points for PointNets. The protocol `standard` trains our PointNet,
# which learns more from few clouds than the published one. `sadm` trains the published one.
SHAPES = {
    "data": {"name": "modelnet10", "points": 1024},
    "clouds": {"points_per_cloud": 1024},
    "lift": {"name": "points"},
    "network": {"name": "pointnet", "width": 1024},
    "objective": {"name": "maximum_mean_discrepancy", "real_batch": 8, "augmentation": True},
    "optimiser": {"name": "adam", "step_size": 0.3, "final_step_fraction": 0.1},
    "schedule": {"iterations": 600, "iterations_per_network": 1},
    "evaluation": {
        "classifier": {"name": "pointnet"},
        "projection": {"name": "soft"},
        "networks": 3,
        "epochs": 501,
        "batch": 8,
        "protocols": ["standard", "sadm"],
    },
}
SHAPES_SMALL = {"evaluation": {"networks": 1, "split": "validation"}}
SPLIT_INTO = 8  # clouds in place of one, each with an eighth of its points
SOLIDS = {
    "data": {"name": "solids", "points": 256},
    "clouds": {"points_per_cloud": 256},
    "network": {"width": 256},
    "objective": {"name": "sorted_feature_matching"},  # moves all points; there are few of them
    "schedule": {"iterations": 300},
    "evaluation": {"networks": 2, "epochs": 60, "protocols": ["standard"]},
}
# Adrenal glands as occupied cells. A gland has 326 cells in the median and 561 or fewer in 95 % of
# the volumes. Points that are not needed pile up in cells of others.
ADRENAL = {
    "data": {"name": "adrenal"},
    "clouds": {"clouds_per_class": 2, "points_per_cloud": 400},
    "lift": {
        "bandwidth_end": 0.25,
        "saturation": 3.0,
        "saturation_start": 1.0,
        "closed": True,
    },
    "network": {"width": 16},
    "objective": {"name": "maximum_mean_discrepancy", "real_batch": 8, "augmentation": True},
    "optimiser": {"step_size": 0.7},  # in 3D points come from far
    "schedule": {"iterations": 200},
    "evaluation": {
        "classifier": {"name": "convnet3d", "width": 16},
        "networks": 3,
        "epochs": 200,
        "batch": 32,
        "protocols": ["standard"],
    },
}
ADRENAL_SMALL = {"evaluation": {"networks": 1, "split": "validation"}}
ADRENAL_DEMO = {"evaluation": {"networks": 1, "epochs": 100}}
