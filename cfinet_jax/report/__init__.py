"""What a run leaves for the reader: tables, plots, pictures, and the page they stand on."""
