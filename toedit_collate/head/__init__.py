"""What hidden states alone decide: log P, candidates, draws. No model, no batch."""
