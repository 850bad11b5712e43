"""What the tokens alone decide: documents, keys and draws, checks. No model."""
