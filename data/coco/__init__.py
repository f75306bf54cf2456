"""Any data set described by COCO JSON files."""
