"""Moving pictures: recordings, the player, the live view."""
