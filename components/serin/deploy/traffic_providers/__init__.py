"""What moves traffic between two releases: one interface, and a provider for each kind of endpoint."""
