"""Reading of a prepared data set at run time, from its files to batches for the devices."""
