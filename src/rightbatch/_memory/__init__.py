"""What memory a step needs, without running it for real."""
