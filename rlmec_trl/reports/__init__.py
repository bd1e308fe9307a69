"""Accuracy, tables, and views of samples token by token."""
