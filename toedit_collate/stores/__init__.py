"""What is kept of documents, by their content."""
