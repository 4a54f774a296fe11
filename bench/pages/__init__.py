"""Pages made from committed results, and what keeps them short: `make docs`, `python -m bench.pages.prose`."""
