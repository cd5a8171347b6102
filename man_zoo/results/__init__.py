"""Results: runs by the list, a JSON line each, and the page that is made of them."""
