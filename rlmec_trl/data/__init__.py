"""Rows: their columns, texts and tokens."""
