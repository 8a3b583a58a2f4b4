"""What every floor may use: errors, files, progress, provenance. It imports nothing of the other floors."""
