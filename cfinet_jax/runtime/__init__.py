"""The process around the mathematics: devices, processes, signals, files, paths, logs and progress."""
