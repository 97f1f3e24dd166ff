"""`train`: a complete training at a batch size that is given, tuned, or grows."""
