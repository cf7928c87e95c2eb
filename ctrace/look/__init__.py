"""Hooks, Grad-CAM, input attributions and ParchGrad: which places and channels raised a score."""
