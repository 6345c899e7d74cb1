"""Documentation: pages, the references that are made from the code, and what builds a site of them."""
