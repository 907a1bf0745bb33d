"""Before a run: everything about data and machine that would hurt it, and the recipe for your own data."""
