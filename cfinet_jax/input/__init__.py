"""From files to batches: what happens at run time between a prepared data set and the devices."""
