"""Training: one loop (loop.py) on accelerate, and what it trains: the demo world's models on drawn portraits."""
