"""Any data set described by a `data.yaml` with a label file per image."""
