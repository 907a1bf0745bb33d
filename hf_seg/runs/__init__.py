"""What a run writes: its folder, its record, its plots and its card."""
