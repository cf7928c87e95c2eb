"""Normalized Cut with an exact gradient, and the channels that hold a segment together."""
