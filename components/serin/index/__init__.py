"""index: documents become chunks, embeddings and one searchable, versioned table."""
