"""Checks of data, objective and gradients before the first step."""
