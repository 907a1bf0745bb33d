"""From logits to numbers: losses, scores, and scores at other sizes."""
