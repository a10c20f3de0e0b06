"""A local Together: the same HTTP, trains and serves small models, keeps a bill."""
