"""SODA-D, the data set of the paper: whole images, and the windows that are trained on."""
