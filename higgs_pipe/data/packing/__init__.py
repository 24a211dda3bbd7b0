"""Packing: plan samples of clips, and assign them to rows by their lengths."""
