"""Packing: plan samples from clips, and assign them to rows by length."""
