"""What the commands draw: text made safe for a terminal, progress bars, the chat screen. No engine calls."""
