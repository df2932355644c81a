"""A trained model at work: recommendations for a file of users, and over HTTP."""
