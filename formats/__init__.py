"""Bytes on disk: typed, bounds-checked readers and writers. No computing, no meaning."""
