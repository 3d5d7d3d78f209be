"""Point clouds on a grid: the type, random moves, files."""
