"""data_prep: a folder or ``s3://`` prefix of documents and conversations becomes a dataset and documents."""
