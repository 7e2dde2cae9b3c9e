"""What the bytes of a quantised tensor mean, and the layout that kernels read."""
