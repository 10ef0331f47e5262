"""Data sets on disk: a look at whether they are whole, and their conversion into what configs read."""
