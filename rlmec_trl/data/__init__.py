"""Rows: how a problem, an attempt and its correction are worded, tokenised, judged and checked."""
