"""Scripts that train the rails' weights; run on a workstation, never at the endpoint (they need torch)."""
