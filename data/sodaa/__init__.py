"""SODA-A, the aerial sister of the paper's data set, with oriented boxes."""
