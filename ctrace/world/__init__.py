"""Photographs, models, tokens and named channels: what the methods look at."""
