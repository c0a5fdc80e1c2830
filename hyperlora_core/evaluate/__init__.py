"""Evaluation: pictures of many people painted side by side, what can be measured on them, and the report."""
