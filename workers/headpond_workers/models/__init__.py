"""Where weights come from: the catalogue and its cache."""
