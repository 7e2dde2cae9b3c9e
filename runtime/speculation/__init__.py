"""Several tokens to a pass of the target model, where something guesses them right; the text never changes.

``loop.py`` verifies drafts, sources (``ngram.py``, …) make them, ``planner.py`` says what they are asked for.
A draft is verified by computing it: row i of a pass holds the logits after the drafted tokens before it, with the
same bits as a pass of one row. The session picks every token from such a row by its own rule, so a draft can only
save a pass, never change what is picked.
"""
