"""Read real data sets as point clouds."""
