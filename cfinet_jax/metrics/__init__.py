"""How detections are scored: `protocols` says by which rules, `score` does it; as a command for files."""
