"""From a digest to verified bytes, by the cheapest path."""
