"""Which map can be trusted: tests that a map can fail, controls that must fail them, and how sure
we are.

Everything takes prepared images ``(b, 3, height, width)`` and maps ``(b, height, width)``; any
method of drawing maps will do.
"""
