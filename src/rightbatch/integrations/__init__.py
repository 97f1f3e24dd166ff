"""Tools that people already use; each framework is imported in its own module and nowhere else."""
