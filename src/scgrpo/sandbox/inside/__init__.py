"""What runs in the worker processes. Standard library and relative imports only: a worker has no other packages."""
