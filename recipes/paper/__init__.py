"""The paper's analyses and figures, one script each."""
