"""What ranks items: networks over semantic IDs, networks over items, baselines."""
