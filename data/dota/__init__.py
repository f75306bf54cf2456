"""Any data set of oriented boxes in the label files of DOTA."""
