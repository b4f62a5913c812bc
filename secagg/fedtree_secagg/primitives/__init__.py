"""Keys, rings, shares and grids."""
