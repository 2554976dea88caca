"""Our numbers against published ones, from published logs."""
