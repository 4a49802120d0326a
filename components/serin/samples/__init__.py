"""Sample data for the demo: documents of the fictional retailer Fauvette, and a generator of conversations."""
