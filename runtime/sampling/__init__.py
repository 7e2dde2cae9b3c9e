"""From one row of logits to one token id: pure functions."""
