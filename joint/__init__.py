"""Joint methods: a tokenizer that learns together with a recommender, one method a file."""
