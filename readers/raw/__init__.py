"""What others have on disk: a file a layout, read as rows of (user, item, time, rating) and texts of items."""
