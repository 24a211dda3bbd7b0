"""Rows judged: which become clips, why others are rejected, and how clips are split."""
