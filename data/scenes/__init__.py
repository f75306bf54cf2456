"""Generated road scenes full of small objects."""
