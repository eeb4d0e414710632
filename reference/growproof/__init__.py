"""Growing a trained transformer without changing its function."""
