"""Report of a run: tables, plots and pictures on one page."""
