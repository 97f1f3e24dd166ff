"""What a study's runs say: grouped by size, steps to a target, the critical batch size, figures."""
