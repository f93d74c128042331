"""What every field shares: training, data feeding, tiled inference, losses, metrics, run folders and reports."""
