"""A user's own data set: what its annotations say, what is wrong with them, configs for it."""
