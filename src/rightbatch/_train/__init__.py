"""`train`: a whole training at a batch size that is given, tuned, or grows."""
