"""Accuracy, tables and views of tokens."""
