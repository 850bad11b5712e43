"""Inside a Trainer: the collator, its batch, the callback, generations."""
