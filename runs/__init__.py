"""Around a run: its folder, what keeps it whole, what it needs and what it says."""
