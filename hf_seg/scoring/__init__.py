"""From logits to numbers: the loss, the scores, and what they are at other sizes."""
